"""The pre-check: a verdict with findings, before any expensive work."""
