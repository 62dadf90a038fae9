"""Cross-LoRA [001]: projection through the leading singular subspaces of both bases."""
