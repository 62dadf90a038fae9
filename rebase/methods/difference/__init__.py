"""SimpleDifference [002]: the update plus the base's own change."""
