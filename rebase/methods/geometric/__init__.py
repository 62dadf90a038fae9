"""Geometric alignment [000]: orthogonal Procrustes between the bases' activations."""
