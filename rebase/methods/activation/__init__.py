"""Closed-form maps between the two bases' activations on the same text."""
