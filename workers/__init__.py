"""The working side: claim → pipeline → Hub → settle. Owns files, network, cache and device."""
