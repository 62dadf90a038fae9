"""Bad input over HTTP, to a real API and a real worker: a typed error each time, and the service goes on."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.tiny_repos import ADAPTER, NEW, OLD, OTHER, edit_json, make_hub
from support.whole_service import Service, service_over

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    hub = make_hub(home / "hub")
    with service_over(hub, home, ADAPTER, NEW, REBASE_RETRY_BASE_S="0.2") as service:
        yield service


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def _header(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        text = edit(data[8 : 8 + size].decode()).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return damage


def _twice(header: str) -> str:
    name, entry = next((k, v) for k, v in json.loads(header).items() if k != "__metadata__")
    return header.rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}"


def _many(_: str) -> str:
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return "{" + ",".join(f'"t{n}":{empty}' for n in range(10**6)) + "}"


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
_DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-config": (lambda folder: (folder / "adapter_config.json").unlink(), "file_missing"),
    "pickle": (_pickle, "unsafe_file"),
    "duplicate-keys": (_header(_twice), "unsafe_file"),
    "million-tensors": (_header(_many), "unsafe_file"),
    "lying-header": (_header(lambda text: text.replace('"F32"', '"F64"', 1)), "unsafe_file"),
    "truncated": (_truncate, "unsafe_file"),
    "nan": (_tensors(lambda t: t[_Q].view(-1)[:1].fill_(float("nan"))), "malformed_adapter"),
    "inf": (_tensors(lambda t: t[_Q].view(-1)[:1].fill_(float("inf"))), "malformed_adapter"),
    "wrong-shape": (_tensors(lambda t: t.update({_Q: torch.zeros(4, 40)})), "malformed_adapter"),
    "no-such-module": (
        _tensors(lambda t: t.update({_Q.replace(".0.", ".9."): torch.zeros(4, 32)})),
        "malformed_adapter",
    ),
    "rank-zero": (_config(r=0), "malformed_adapter"),
    "absurd-rank": (_config(r=10**6), "malformed_adapter"),
    "no-base": (_config(base_model_name_or_path=None), "malformed_adapter"),
    "prefix-tuning": (_config(peft_type="PREFIX_TUNING"), "unsupported_adapter"),
}


@pytest.mark.parametrize("name", sorted(_DAMAGED))
def test_a_damaged_adapter_ends_in_its_own_code_and_the_next_job_succeeds(
    service: Service, name: str
) -> None:
    damage, code = _DAMAGED[name]
    repo = f"acme/damaged-{name}"
    damage(Path(shutil.copytree(service.hub / ADAPTER, service.hub / repo)))

    job = service.ended(adapter={"repo_id": repo})
    assert (job["status"], job["error"]["code"]) == ("failed", code), job["error"]
    assert len(job["error"]["message"]) > 20
    assert "Traceback" not in json.dumps(job)
    assert service.ended(output={"repo_id": f"acme/after-{name}"})["status"] == "succeeded"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"adapter": {"repo_id": "acme/nobody"}}, "repo_not_found"),
        ({"target": {"repo_id": "acme/nobody"}}, "repo_not_found"),
        ({"target": {"repo_id": NEW, "revision": "v9"}}, "revision_not_found"),
        ({"target": {"repo_id": OLD}}, "request_invalid"),
        ({"source": {"repo_id": OTHER}}, "malformed_adapter"),
        ({"source": {"repo_id": ADAPTER}}, "file_missing"),
        ({"output": {"repo_id": OLD}}, "output_forbidden"),
    ],
)
def test_a_request_that_names_the_wrong_thing_ends_in_its_own_code(
    service: Service, changes: dict[str, Any], code: str
) -> None:
    job = service.ended(**changes)
    assert (job["status"], job["error"]["code"]) == ("failed", code), job["error"]
    assert job["attempt"] == 1


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"method": "magic"}, 422, "/method"),
        ({"method": {"name": "cross_lora", "rank": 0}}, 422, "/method/rank"),
        ({"method": {"name": "cross_lora", "ranc": 8}}, 422, "/method/ranc"),
        ({"output": {"repo_id": "../../etc/passwd"}}, 422, "/output/repo_id"),
        ({"adapter": {"repo_id": "/etc"}}, 422, "/adapter/repo_id"),
        ({"evaluate": {"tasks": []}}, 422, "/evaluate"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_at_its_field(
    service: Service, body: dict[str, Any], status: int, pointer: str
) -> None:
    request = {"adapter": {"repo_id": ADAPTER}, "target": {"repo_id": NEW}, **body}
    answer = httpx2.post(f"{service.url}/convert", json=request, timeout=30)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in json.dumps(answer.json())


def test_a_body_that_is_too_large_is_refused(service: Service) -> None:
    answer = httpx2.post(f"{service.url}/convert", content=b"x" * 10**6, timeout=30)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
