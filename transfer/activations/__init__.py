"""What paired activations say about two bases: how alike layers are, and the linear maps between sites."""
