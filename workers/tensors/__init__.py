"""Reading tensors and configs out of repos: lazily, by position, and never through a pickle."""
