"""Where models and adapters are read from and written to: one port, two implementations."""
