"""The factor cache: factors and maps of base models, on disk and in Redis, computed once."""
