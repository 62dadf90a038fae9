"""The science: pure functions on tensors. No network, no database, no clock.

`rebase.errors` and `rebase.methods.params` are torch-free: the API validates and publishes parameters.
"""
