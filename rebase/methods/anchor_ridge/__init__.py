"""Anchor prediction [003]: regression on a pool of tasks with an adapter on both bases."""
