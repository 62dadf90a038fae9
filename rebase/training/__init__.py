"""Training an update or CAST's maps on the target model."""
