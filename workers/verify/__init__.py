"""Checks between building an adapter and publishing it. Whatever fails here is never pushed."""
