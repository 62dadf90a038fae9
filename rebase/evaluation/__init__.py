"""Evaluation of adapters on examples and benchmark tasks."""
