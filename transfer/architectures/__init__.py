"""Where each model family keeps its linear roles, norms and sizes: tables, bound to one config at a time."""

from transfer.architectures.architecture import Architecture, architecture_for
from transfer.architectures.families import FAMILIES, Family, NormKind

__all__ = ["FAMILIES", "Architecture", "Family", "NormKind", "architecture_for"]
