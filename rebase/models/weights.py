"""Reads a base model's tensors lazily by role: one site at a time, and only the rows that belong to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import Site
from rebase.lora.tensors import READABLE_DTYPES, TensorReader
from rebase.models.architecture import Architecture, get_architecture
from rebase.models.families import NormKind

_EMBEDDING_CHUNK_ROWS = 4096  # 32 MB of bf16 at width 4096: bounded memory, few reads


class ModelWeights:
    """One base model: config plus reader. Cheap to create; raises UnsupportedModel if the two disagree."""

    def __init__(self, config: Mapping[str, Any], reader: TensorReader) -> None:
        self.config = config
        self.architecture: Architecture = get_architecture(config)
        self._reader = reader
        self._infos = reader.infos()
        self._prefix = self._find_prefix()
        self._check_tensors()

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return self.architecture.layers

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site of the model, layer by layer."""
        return self.architecture.sites

    @cached_property
    def _site_set(self) -> frozenset[Site]:
        return frozenset(self.sites)

    def has_weight(self, site: Site) -> bool:
        """Whether the checkpoint stores the site's module under its own name; older checkpoints of some
        architectures fuse or split modules."""
        return f"{self._get_module_name(site)}.weight" in self._infos

    def has_site(self, site: Site) -> bool:
        """Whether the model has this site."""
        return site in self._site_set

    def shape(self, site: Site) -> tuple[int, int]:
        """(o, i) of the site's weight."""
        return self.architecture.shape(site)

    def list_tensor_names(self, site: Site) -> tuple[str, ...]:
        """Names of the checkpoint tensors that `weight` and `bias` read."""
        name = self._get_module_name(site)
        return tuple(tensor for tensor in (f"{name}.weight", f"{name}.bias") if tensor in self._infos)

    def weight(self, site: Site) -> Tensor:
        """The site's weight, (o, i) float32, sliced from a fused module and un-transposed as needed."""
        name = f"{self._get_module_name(site)}.weight"
        if name not in self._infos:
            raise UnsupportedModel(
                f"The checkpoint has no tensor named {name}; it stores this module in another form.",
                hint="The method `copy` does not need it. For other methods, save the model again with "
                "save_pretrained of the installed transformers.",
            )
        rows = self.architecture.get_output_rows(site)
        if isinstance(rows, slice) and not self.architecture.family.transposed:
            return self._reader.read_rows(name, rows.start, rows.stop).float()
        tensor = self._reader.read(name)
        if self.architecture.family.transposed:
            tensor = tensor.T
        return (tensor if rows is None else tensor[rows]).float().contiguous()

    def bias(self, site: Site) -> Tensor | None:
        """The site's bias, (o,) float32, or None if the module has none."""
        name = f"{self._get_module_name(site)}.bias"
        if name not in self._infos:
            return None
        tensor = self._reader.read(name).float()
        rows = self.architecture.get_output_rows(site)
        return tensor if rows is None else tensor[rows].contiguous()

    def find_tensor(self, name: str) -> str | None:
        """The checkpoint's tensor for a parameter that an adapter or transformers names, such as
        `model.norm.weight`, whatever prefix either uses; None if there is none."""
        if name in self._infos:
            return name
        prefixes = sorted({self.architecture.root, *self.architecture.family.prefixes}, key=len, reverse=True)
        rest = name.removeprefix(next(prefix for prefix in prefixes if name.startswith(prefix)))
        tensor = f"{self._prefix}{rest}"
        return tensor if tensor in self._infos else None

    def find_outer_tensor(self, name: str) -> str | None:
        """The checkpoint's tensor for a parameter outside the text model; some checkpoints leave out the
        leading `model.`, others the adapter does."""
        candidates = (name, name.removeprefix("model."), f"model.{name}")
        return next((candidate for candidate in candidates if candidate in self._infos), None)

    def get_parameter_name(self, tensor: str) -> str:
        """The parameter's name in the causal language model that transformers builds; `tensor`: its name in
        the checkpoint."""
        if self._prefix and not tensor.startswith(self._prefix):
            return tensor
        return f"{self.architecture.root}{tensor.removeprefix(self._prefix)}"

    def tensor_shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of the checkpoint."""
        return self._infos[tensor].shape

    def read_tensor(self, tensor: str) -> Tensor:
        """A tensor of the checkpoint in float32."""
        return self._reader.read(tensor).float()

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(rows, hidden) of the input embedding; rows may exceed the tokenizer's vocabulary (padding). By the
        config where the checkpoint names the embedding in a way of its own."""
        if self._embedding_name not in self._infos:
            return self.architecture.vocab, self.architecture.hidden
        rows, width = self._infos[self._embedding_name].shape
        return rows, width

    def read_embedding_rows(self, ids: Tensor) -> Tensor:
        """Input to layer 0 for these token ids, (n, hidden) float32, including Gemma's √hidden scaling.

        Raises UnsupportedModel for an id without a row (the tokenizer belongs to another model).
        """
        total, width = self.embedding_shape
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= total):
            raise UnsupportedModel(
                f"The tokenizer uses token id {int(ids.max())}, but the embedding has {total} rows.",
                hint="tokenizer.json and the weights belong to different models.",
            )
        out = torch.empty(ids.numel(), width)
        chunk_of = ids // _EMBEDDING_CHUNK_ROWS
        for chunk in torch.unique(chunk_of).tolist():
            start = chunk * _EMBEDDING_CHUNK_ROWS
            rows = self._reader.read_rows(
                self._embedding_name, start, min(start + _EMBEDDING_CHUNK_ROWS, total)
            )
            in_chunk = chunk_of == chunk
            out[in_chunk] = rows[ids[in_chunk] - start].float()
        if self.architecture.family.scale_embeddings:
            out *= self.architecture.hidden**0.5
        return out

    def load_norm(self, layer: int, before: Literal["attention", "mlp"]) -> Callable[[Tensor], Tensor]:
        """The layer's norm before attention or MLP, as a function on (n, hidden) float32."""
        family, eps = self.architecture.family, self.architecture.eps
        part = family.attention_norm if before == "attention" else family.mlp_norm
        if family.norm_kind is NormKind.NONE or (family.norm_kind is not None and not part):
            return lambda x: x
        if family.norm_kind is None:
            raise UnsupportedModel(
                f"The norms of {family.model_type} models are not computed here, which this method needs.",
                hint="Use `copy`, or a method that reads a text with both models (`linear`, `distill`).",
            )
        name = f"{self._prefix}{self.architecture.get_layer_name(layer)}.{part}"
        weight = self._reader.read(f"{name}.weight").float()
        shape = (self.architecture.hidden,)
        if family.norm_kind is NormKind.LAYER:
            bias = self._reader.read(f"{name}.bias").float()
            return lambda x: functional.layer_norm(x, shape, weight, bias, eps)
        gain = 1 + weight if family.norm_kind is NormKind.RMS_PLUS_ONE else weight
        return lambda x: functional.rms_norm(x, shape, gain, eps)

    @property
    def _embedding_name(self) -> str:
        return f"{self._prefix}{self.architecture.family.embedding}.weight"

    def _get_module_name(self, site: Site) -> str:
        arch = self.architecture
        return f"{self._prefix}{arch.get_layer_name(site.layer)}.{arch.get_submodule_name(site)}"

    def _find_prefix(self) -> str:
        family = self.architecture.family
        for prefix in dict.fromkeys((self.architecture.root, *family.prefixes)):
            if f"{prefix}{family.embedding}.weight" in self._infos:
                return prefix
        prefix_of_layers = self._find_prefix_of_layers()
        if prefix_of_layers is not None:
            return prefix_of_layers
        raise UnsupportedModel(
            f"The checkpoint has no tensor named {self.architecture.root}{family.embedding}.weight.",
            hint=f"config.json says {family.model_type}; the weights look like another architecture.",
        )

    def _find_prefix_of_layers(self) -> str | None:
        """What stands before the first layer, for an architecture that was found by looking: checkpoints may
        name the embedding in another way than transformers does."""
        if self.architecture.found is None:
            return None
        first_layer = re.compile(rf"((?:.+\.)?){re.escape(self.architecture.get_layer_name(0))}\.")
        found = {match[1] for name in self._infos if (match := first_layer.match(name)) is not None}
        prefixes = (self.architecture.root, *self.architecture.family.prefixes, *sorted(found))
        return next((prefix for prefix in prefixes if prefix in found), None)

    def _check_tensors(self) -> None:
        """Check that all tensors for sites and norms exist, are readable and have the config's shapes."""
        arch, family = self.architecture, self.architecture.family
        if arch.found is not None:
            self._check_found_modules()
            return
        if len(self._infos[self._embedding_name].shape) != 2:
            raise UnsupportedModel(f"The tensor {self._embedding_name} should have two dimensions.")
        self._check_tensor(self._embedding_name, (self._infos[self._embedding_name].shape[0], arch.hidden))
        norm_parts = ("weight", "bias") if family.norm_kind is NormKind.LAYER else ("weight",)
        for layer in range(self.layers):
            stem = f"{self._prefix}{arch.get_layer_name(layer)}."
            for part in family.layout:
                o, i = arch.module_shape(layer, part)
                self._check_tensor(f"{stem}{part}.weight", (i, o) if family.transposed else (o, i))
                if f"{stem}{part}.bias" in self._infos:
                    self._check_tensor(f"{stem}{part}.bias", (o,))
            for norm in (family.attention_norm, family.mlp_norm):
                for kind in norm_parts:
                    self._check_tensor(f"{stem}{norm}.{kind}", (arch.hidden,))

    def _check_found_modules(self) -> None:
        """Check what the checkpoint stores under the names of the modules that were found; it may store some
        in another form, which transformers converts when it loads them."""
        arch = self.architecture
        for layer in range(self.layers):
            for part in arch.get_layout(layer):
                name = f"{self._prefix}{arch.get_layer_name(layer)}.{part}.weight"
                if name in self._infos:
                    o, i = arch.module_shape(layer, part)
                    self._check_tensor(name, (i, o) if arch.family.transposed else (o, i))

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        info = self._infos.get(name)
        if info is None:
            raise UnsupportedModel(f"The checkpoint has no tensor named {name}, which config.json implies.")
        if info.dtype not in READABLE_DTYPES:
            raise UnsupportedModel(
                f"The tensor {name} is stored as {info.dtype}, which is not supported.",
                hint="Use the unquantized repo of the same model.",
            )
        if info.shape != shape:
            raise UnsupportedModel(
                f"The tensor {name} has shape {list(info.shape)}, but config.json implies {list(shape)}."
            )
