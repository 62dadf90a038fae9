"""Anchor prediction [003]: regression over a pool of tasks with an adapter on both bases."""
