"""`auto`: chooses a method by rules or by measurement."""
