"""Text corpora that both base models read: bundled, from a file, or from a dataset repo."""
