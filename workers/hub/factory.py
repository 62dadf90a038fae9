"""The hub of a deployment."""

from __future__ import annotations

import os
from pathlib import Path

from rebase.settings import Settings
from workers.hub.local import LocalHub
from workers.hub.port import Hub


def make_hub(settings: Settings) -> Hub:
    """The local hub folder when one is set, else the Hub at HF_ENDPOINT (https://huggingface.co by default).

    Downloads go to the Hub client's own cache folder (HF_HUB_CACHE, HF_HOME), so what a machine already has
    is not fetched again; access is asked for anew with every job all the same.
    """
    if settings.hub_dir is not None:
        return LocalHub(settings.hub_dir)
    # Imported late: the client is not needed, and takes a while to load, where a folder is the hub.
    from huggingface_hub import constants  # noqa: PLC0415

    from workers.hub.remote import RemoteHub  # noqa: PLC0415

    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return RemoteHub(token, endpoint, Path(constants.HF_HUB_CACHE))
