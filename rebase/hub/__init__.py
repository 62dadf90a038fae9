"""Model hubs behind one interface: the Hugging Face Hub, a local hub folder, plain folders."""
