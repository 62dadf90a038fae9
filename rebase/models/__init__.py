"""Base models: architectures, checkpoints on disk, vocabularies, and models that run."""
