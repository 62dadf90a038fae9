"""The text that the bundled models were trained on: hand-written passages and seeded generators."""
