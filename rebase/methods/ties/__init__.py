"""TIES merging [000]: a baseline."""
