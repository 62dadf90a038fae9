"""The embedded deployment as one process tree: migrations, API, worker, callback dispatcher."""
