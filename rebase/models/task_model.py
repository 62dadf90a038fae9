"""Which of transformers' model classes an adapter is for: by task type, and with or without a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import PretrainedConfig

from rebase.errors import UnsupportedModel
from rebase.lora.extra_parts import HEAD_MODULES

_PREFIX = "base_model.model."
_MAPPINGS: Mapping[str, str] = {
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
}


@dataclass(frozen=True, slots=True)
class TaskModel:
    """The model that the users of an adapter load. `num_labels`: rows of its trained head, if it has one."""

    task_type: str | None = "CAUSAL_LM"
    is_headless: bool = False
    num_labels: int | None = None

    @classmethod
    def for_adapter(
        cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, is_headless: bool
    ) -> TaskModel:
        """From a written adapter_config.json and the shapes of the adapter's tensors."""
        heads = (shapes.get(f"{_PREFIX}{module}.weight") for module in sorted(HEAD_MODULES))
        rows = next((shape[0] for shape in heads if shape), None)
        return cls(config.get("task_type"), is_headless, rows)

    def get_class(self, config: PretrainedConfig) -> Any:
        """transformers' class for this config. Raises UnsupportedModel if the architecture has none."""
        name = (
            "MODEL_MAPPING"
            if self.is_headless
            else _MAPPINGS.get(str(self.task_type), _MAPPINGS["CAUSAL_LM"])
        )
        mapping: Any = getattr(transformers, name)
        if type(config) not in mapping and name == _MAPPINGS["CAUSAL_LM"]:
            mapping = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if type(config) not in mapping:
            raise UnsupportedModel(
                f"transformers has no model of type {config.model_type} for the task {self.task_type}.",
                hint="Name a target whose architecture has a class for this task.",
            )
        return mapping[type(config)]

    def complete_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config with as many labels as the adapter's head has."""
        if self.num_labels is not None:
            config.num_labels = self.num_labels
        return config

    def is_own_head(self, parameter: str) -> bool:
        """Is it a parameter of the head that the adapter brings, so that the base's checkpoint lacks it?"""
        return self.num_labels is not None and parameter.partition(".")[0] in HEAD_MODULES

    def get_output(self, result: Any) -> Tensor:
        """Logits, or hidden states of a model without a head, in float32."""
        for name in ("logits", "start_logits", "last_hidden_state"):
            value = getattr(result, name, None)
            if value is not None:
                output: Tensor = value.float()
                return output
        raise UnsupportedModel("The model returns neither logits nor hidden states.")


CAUSAL_LM = TaskModel()


def choose_runnable_config(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the config of the model to run for text, whether it is the outer one): the text model's own, if
    transformers has a causal language model of its type."""
    text_config = raw.get("text_config")
    if not isinstance(text_config, Mapping):
        return dict(raw), False
    config_class: Any = transformers.CONFIG_MAPPING.get(str(text_config.get("model_type")), None)
    if config_class in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return dict(text_config), False
    return dict(raw), True
