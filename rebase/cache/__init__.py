"""The factor cache: factors and alignments of base models, computed once and kept on disk and in Redis."""
