"""Measuring an adapter with running models, on examples and benchmark tasks."""
