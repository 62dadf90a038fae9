"""SimpleCopy [002]: the update is taken over unchanged."""
