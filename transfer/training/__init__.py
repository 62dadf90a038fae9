"""What training minimises: pure losses and weights of tokens."""
