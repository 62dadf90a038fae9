"""LoRA adapters: reading what PEFT wrote, writing what every loader reads."""

from transfer.adapter.config import AdapterConfig
from transfer.adapter.read import SourceAdapter, read_adapter
from transfer.adapter.write import BuiltAdapter, build_adapter

__all__ = ["AdapterConfig", "BuiltAdapter", "SourceAdapter", "build_adapter", "read_adapter"]
