"""CAST [004]: maps trained around the frozen adapter and folded into it."""
