"""Anchor-space prediction [003]: a new target adapter as a combination of the pool's target adapters."""
