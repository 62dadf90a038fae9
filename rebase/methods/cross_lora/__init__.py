"""Cross-LoRA [001]: projects the update through the leading singular subspaces of both bases."""
