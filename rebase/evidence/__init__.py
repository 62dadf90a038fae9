"""What transfer methods look at: factors, shared embeddings, activations, anchor pools; gathered lazily."""
