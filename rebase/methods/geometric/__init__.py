"""Geometric alignment [000]: an orthogonal map between the bases' activations."""
