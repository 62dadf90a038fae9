"""Distillation: an adapter trained on text that the source generates with its adapter."""
