"""What a moved adapter is worth, measured on running models."""
