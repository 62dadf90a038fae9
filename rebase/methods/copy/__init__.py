"""SimpleCopy [002]: copies the update unchanged."""
