"""A small adapter moved between two related tiny bases by the engine, with PEFT as the witness."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_models import save_base, tiny_model, with_adapter
from support.tiny_repos import edit_json, perturb, tokenizer

OLD, NEW, SKILL = "acme/old", "acme/new", "acme/skill"
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
PROBE_IDS = torch.arange(96).view(4, 24)


@dataclass(frozen=True)
class AdapterWorld:
    """A local hub with an old base, a new one and an adapter of the old one."""

    hub: Path
    family: str = "llama"

    @classmethod
    def create(
        cls, folder: Path, family: str = "llama", *, distance: float = 0.0, **changes: Any
    ) -> AdapterWorld:
        """Both bases have one tokenizer; `distance`: how far apart their weights are; 0: equal."""
        hub = folder / "hub"
        for repo in (OLD, NEW):
            save_base(hub / repo, family, seed=0, **changes)
            (hub / repo / "tokenizer.json").write_text(json.dumps(tokenizer(96)))
        if distance:
            perturb(hub / NEW, distance)
        else:  # other bytes, the same function: the same commit would be refused
            edit_json(hub / NEW / "config.json", transformers_version="5")
        return cls(hub, family)

    def train(self, change: Callable[[PeftModel], None] = lambda _: None, **lora: Any) -> PeftModel:
        """Save an adapter of the old base; `change` does to the wrapped model what training does."""
        wrapped = with_adapter(tiny_model(self.family), **{**LORA, **lora})
        with torch.no_grad():
            change(wrapped)
        self.save(wrapped)
        return wrapped.eval()

    def train_on(self, model: Any, **lora: Any) -> PeftModel:
        """Save an adapter of this model of the old base, with random factors."""
        wrapped = with_adapter(model, **{**LORA, **lora})
        self.save(wrapped)
        return wrapped.eval()

    def save(self, wrapped: PeftModel) -> None:
        """Save what PEFT saves, naming the old base."""
        wrapped.save_pretrained(str(self.hub / SKILL))
        edit_json(self.hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)

    def convert(self, kind: str = "convert", **changes: Any) -> tuple[Report, Path]:
        """(the report, the folder of the result)."""
        body: dict[str, Any] = {"adapter": {"repo_id": SKILL}, "target": {"repo_id": NEW}, "method": "copy"}
        body["output"] = {"dtype": "float32"}
        body["precheck"] = {"on_incompatible": "warn"}
        runtime = Runtime(
            LocalHub(self.hub), FactorCache(self.hub.parent / "cache", 2**30), torch.device("cpu")
        )
        out = self.hub.parent / f"out-{len(list(self.hub.parent.glob('out-*')))}"
        request = ConversionRequest.model_validate(body | changes)
        if kind == "precheck":
            request = request.model_copy(update={"output": type(request.output)()})
        result = run_conversion(
            plan_conversion(request, "precheck" if kind == "precheck" else "convert"),
            runtime,
            NullReporter(),
            out,
            marker=None,
        )
        assert isinstance(result, ConversionResult)
        return result.report, out

    def load(self, repo: str, auto_class: Any = AutoModelForCausalLM, **changes: Any) -> Any:
        """A base as its users load it, in float32."""
        return auto_class.from_pretrained(self.hub / repo, dtype=torch.float32, **changes).eval()

    def load_result(self, out: Path, auto_class: Any = AutoModelForCausalLM, **changes: Any) -> Any:
        """The new base with the converted adapter, loaded by PEFT."""
        return PeftModel.from_pretrained(self.load(NEW, auto_class, **changes), str(out)).eval()


def compute_logits(model: Any) -> Tensor:
    """The model's output over the probe tokens: logits, or hidden states."""
    with torch.no_grad():
        result = model(input_ids=PROBE_IDS)
    output: Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return output


def scale_module(name: str, factor: float) -> Callable[[PeftModel], None]:
    """Training that multiplies every saved copy of the modules with this ending."""

    def change(wrapped: PeftModel) -> None:
        for path, module in wrapped.base_model.model.named_modules():
            if path.endswith(name) and hasattr(module, "modules_to_save"):
                for parameter in module.modules_to_save["default"].parameters():
                    parameter.mul_(
                        1 + factor * torch.sin(torch.arange(parameter.numel()).view(parameter.shape))
                    )

    return change


def read_config(out: Path) -> Mapping[str, Any]:
    """The written adapter_config.json."""
    config: dict[str, Any] = json.loads((out / "adapter_config.json").read_text())
    return config
