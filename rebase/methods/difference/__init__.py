"""SimpleDifference [002]: the update plus the difference between the bases."""
