"""Weight averaging [000]: a baseline."""
