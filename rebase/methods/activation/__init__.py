"""Closed-form maps between what the two bases compute from one text."""
