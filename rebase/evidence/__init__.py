"""Evidence for transfer methods, gathered lazily: factors, shared embeddings, activations, anchor pools."""
