"""One transfer method per file; `rebase.methods.registry` lists them."""
