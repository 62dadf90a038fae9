"""One transfer method per file; `transfer.registry` lists them."""
