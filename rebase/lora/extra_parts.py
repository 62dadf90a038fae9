"""What an adapter trained besides LoRA on the linear modules of its layers.

Single parameters (norms, biases, heads, whole modules of `modules_to_save`) are stored as trained, not as a
change. LoRA on the embedding or the output head is an update whose rows are tokens (PEFT's `lora_embedding_A`
and `lora_embedding_B`, or `lora_A` and `lora_B` of the head).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rebase.errors import MalformedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.tensor_names import ModuleTensors, TensorGroups
from rebase.lora.tensors import TensorInfo

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

_DTYPES = frozenset({"F32", "F16", "BF16"})
# Heads that transformers puts on top of a base model for classification and question answering. PEFT adds the
# first two to `modules_to_save` by itself.
HEAD_MODULES = frozenset({"score", "classifier", "qa_outputs"})

# What the parts of models that also see or hear are called in transformers.
_OUTSIDE = (
    *("vision", "visual", "image", "audio", "speech", "multi_modal_projector", "multimodal_projector"),
    *("mm_projector", "connector", "aligner", "embed_vision", "embed_audio"),
)

ParameterKind = Literal["head", "bias", "norm", "module"]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """One fully trained parameter. `base_name`: the same parameter in the source base's checkpoint, or None
    for a head that the checkpoint does not have."""

    module: str
    parameter: Literal["weight", "bias"]
    tensor_name: str
    shape: tuple[int, ...]
    base_name: str | None

    @property
    def name(self) -> str:
        """Module and parameter, such as `model.norm.weight`."""
        return f"{self.module}.{self.parameter}"

    @property
    def kind(self) -> ParameterKind:
        """What it is, judged by name and shape."""
        if self.base_name is None:
            return "head"
        if "norm" in self.module.rpartition(".")[2] or self.module.rpartition(".")[2] in {
            "ln_1",
            "ln_2",
            "ln_f",
        }:
            return "norm"
        return "bias" if self.parameter == "bias" else "module"


@dataclass(frozen=True, slots=True)
class VocabularyLora:
    """LoRA on the embedding or the output head: tensor names, number of tokens, rank and scale.

    `is_embedding`: A is (rank, tokens) and B (width, rank), as PEFT stores embeddings; otherwise A is
    (rank, width) and B (tokens, rank).
    """

    module: str
    A: str
    B: str
    rows: int
    rank: int
    scale: float
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """LoRA on a parameter that holds one matrix for each expert of a mixture (`target_parameters`).

    `module`: PEFT's name, which ends with `.base_layer` for each further parameter of the same module. A is
    (rank · experts, i), B (o, rank · experts).
    """

    module: str
    A: str
    B: str
    scale: float


@dataclass(frozen=True, slots=True)
class OtherLora:
    """LoRA on a linear module outside the language model: a vision or audio tower, a projector.

    `base_name`: the module's weight in the source base's checkpoint, (o, i).
    """

    module: str
    A: str
    B: str
    rank: int
    scale: float
    base_name: str


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A trained part that the converted adapter does not have, what kind it is, and why. `is_partial`: the
    rest of the module is transferred."""

    module: str
    kind: str
    reason: str
    is_partial: bool = False

    def describe(self) -> str:
        """One sentence for the user."""
        return f"{self.module} ({self.kind}) is left behind: {self.reason}."


def find_parameters(
    groups: TensorGroups, config: AdapterConfig, infos: Mapping[str, TensorInfo], base: ModelWeights
) -> tuple[tuple[StoredParameter, ...], list[str]]:
    """(fully trained parameters, tensor names that match nothing in the base).

    Raises MalformedAdapter if a parameter has another shape than the base's.
    """
    found: list[StoredParameter] = []
    unknown: list[str] = []
    for name, tensor in sorted(groups.parameters.items()):
        module, _, parameter = name.rpartition(".")
        info = infos[tensor]
        base_name = base.find_tensor(name)
        is_head = module in HEAD_MODULES or ("." not in module and module in config.modules_to_save)
        if base_name is None and not is_head:
            unknown.append(tensor)
            continue
        _check_dtype(name, info)
        if base_name is not None and base.tensor_shape(base_name) != info.shape:
            raise MalformedAdapter(
                f"The source base does not fit this adapter: {name} has shape {list(info.shape)}, but the "
                f"base's is {list(base.tensor_shape(base_name))}.",
                hint="Set `source` to the base model that the adapter was trained on.",
                pointer="/source",
            )
        kind: Literal["weight", "bias"] = "bias" if parameter == "bias" else "weight"
        found.append(StoredParameter(module, kind, tensor, info.shape, base_name))
    return tuple(found), unknown


def take_expert_loras(
    groups: TensorGroups, config: AdapterConfig, infos: Mapping[str, TensorInfo], base: ModelWeights
) -> tuple[ExpertLora, ...]:
    """LoRA on parameters with one matrix for each expert, which is taken out of the groups' modules.

    Raises MalformedAdapter if a factor is missing, is no matrix, or fits none of the base's parameters.
    """
    loras: list[ExpertLora] = []
    for name in sorted(groups.modules):
        module = name
        while module.endswith(".base_layer"):
            module = module.removesuffix(".base_layer")
        parameters = base.architecture.find_expert_parameters(module)
        if not parameters:
            continue
        tensors = groups.modules.pop(name)
        if tensors.A is None or tensors.B is None:
            raise MalformedAdapter(f"{name} lacks its LoRA {'A' if tensors.A is None else 'B'} tensor.")
        A, B = infos[tensors.A], infos[tensors.B]
        _check_dtype(name, A)
        _check_dtype(name, B)
        sizes = {A.shape[-1], B.shape[0]} if len(A.shape) == len(B.shape) == 2 else set()
        matching = [leaf for leaf, shape in parameters.items() if {shape[-1], shape[-2]} == sizes]
        if not matching:
            raise MalformedAdapter(
                f"The LoRA on {name} has the shapes {list(A.shape)} and {list(B.shape)}, which fit no expert "
                "of the source base.",
                hint="Set `source` to the base model that the adapter was trained on.",
                pointer="/source",
            )
        loras.append(ExpertLora(name, tensors.A, tensors.B, config.compute_scale(f"{module}.{matching[0]}")))
    return tuple(loras)


def take_other_loras(
    groups: TensorGroups, config: AdapterConfig, infos: Mapping[str, TensorInfo], base: ModelWeights
) -> tuple[tuple[OtherLora, ...], list[LeftBehind]]:
    """LoRA outside the language model, taken out of the groups' modules: (what the base has in these shapes,
    what it does not)."""
    loras: list[OtherLora] = []
    left_behind: list[LeftBehind] = []
    for name in sorted(groups.modules):
        if base.architecture.find_module_sites(name) or not is_outside_text(name):
            continue
        tensors = groups.modules.pop(name)
        if not config.targets_module(name, -1) or tensors.A is None or tensors.B is None:
            continue
        tensor, rank = base.find_outer_tensor(f"{name}.weight"), config.get_rank(name)
        A, B = infos[tensors.A], infos[tensors.B]
        expected = base.tensor_shape(tensor) if tensor is not None else ()
        if (
            tensor is None
            or tensors.magnitude is not None
            or (A.shape, B.shape)
            != (
                (rank, *expected[1:]),
                (*expected[:1], rank),
            )
        ):
            reason = (
                "the source base has no linear module of this name and shape, or it was trained with DoRA"
            )
            left_behind.append(LeftBehind(name, "LoRA outside the language model", reason))
            continue
        _check_dtype(name, A)
        _check_dtype(name, B)
        loras.append(OtherLora(name, tensors.A, tensors.B, rank, config.compute_scale(name), tensor))
    return tuple(loras), left_behind


def is_outside_text(module: str) -> bool:
    """Does the module belong to a vision or audio tower, or to a projector between one and the text?"""
    return any(part.lower().startswith(_OUTSIDE) for part in module.split("."))


def find_vocabulary_loras(
    groups: TensorGroups, config: AdapterConfig, infos: Mapping[str, TensorInfo], width: int
) -> tuple[tuple[VocabularyLora, ...], list[LeftBehind]]:
    """(LoRA on embedding and head, those of a form that is not read). `width`: the base's hidden size.

    Raises MalformedAdapter if a factor is missing or its shape contradicts the config or the base.
    """
    loras: list[VocabularyLora] = []
    left_behind: list[LeftBehind] = []
    for module, tensors in sorted(groups.vocabulary_loras.items()):
        if not config.targets_module(module, -1):
            continue
        if tensors.A is None or tensors.B is None:
            raise MalformedAdapter(f"{module} lacks its LoRA {'A' if tensors.A is None else 'B'} tensor.")
        if tensors.magnitude is not None:
            left_behind.append(
                LeftBehind(module, "DoRA on token rows", "DoRA is only read on linear modules")
            )
            continue
        loras.append(_check_vocabulary_lora(module, tensors, config, infos, width))
    return tuple(loras), left_behind


def _check_vocabulary_lora(
    module: str,
    tensors: ModuleTensors,
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    width: int,
) -> VocabularyLora:
    assert tensors.A is not None and tensors.B is not None
    A, B, rank = infos[tensors.A], infos[tensors.B], config.get_rank(module)
    _check_dtype(module, A)
    _check_dtype(module, B)
    is_embedding = "lora_embedding_" in tensors.A
    shapes_fit = len(A.shape) == len(B.shape) == 2 and (
        (A.shape[0], B.shape) == (rank, (width, rank))
        if is_embedding
        else (A.shape, B.shape[1]) == ((rank, width), rank)
    )
    if not shapes_fit:
        raise MalformedAdapter(
            f"The LoRA on {module} has the shapes {list(A.shape)} and {list(B.shape)}, which do not fit rank "
            f"{rank} and tokens of {width} numbers.",
            hint="Set `source` to the base model that the adapter was trained on.",
            pointer="/source",
        )
    rows = A.shape[1] if is_embedding else B.shape[0]
    return VocabularyLora(
        module, tensors.A, tensors.B, rows, rank, config.compute_scale(module), is_embedding
    )


def _check_dtype(name: str, info: TensorInfo) -> None:
    if info.dtype not in _DTYPES:
        raise MalformedAdapter(f"{name} is stored as {info.dtype}; F32, F16 and BF16 are read.")
