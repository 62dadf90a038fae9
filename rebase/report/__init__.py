"""What a conversion reports: the report's schema, the model card, the layer heat map."""
