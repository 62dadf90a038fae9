"""CAST [004]: trains maps around the frozen adapter and folds them into it."""
