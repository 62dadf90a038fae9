"""A stand-in for the Hub: a real HTTP server that the real Hub client talks to.

    with StandinHub() as hub:
        token = hub.add_token("hf_alice", user="alice")
        hub.add_repo("alice/base", folder)
        RemoteHub(token, hub.url, cache_dir)

Or as a process of its own: `PYTHONPATH=tests python -m support.standin_hub --root DIR --port N`; its clients
need HF_HUB_DISABLE_XET=1 in their environment, because the stand-in keeps large files by LFS only.
"""

import os
import sys

from support.standin_hub.faults import Fault
from support.standin_hub.server import StandinHub
from support.standin_hub.store import Store, Token

__all__ = ["Fault", "StandinHub", "Store", "Token"]

# For a client in this very process, which reads the switch once, when it is imported.
os.environ["HF_HUB_DISABLE_XET"] = "1"
if (_client := sys.modules.get("huggingface_hub.constants")) is not None:
    _client.HF_HUB_DISABLE_XET = True  # type: ignore[attr-defined]
