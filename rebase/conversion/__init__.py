"""The engine: one conversion, from repo names to a verified adapter folder. No SQL, queue or HTTP server."""
