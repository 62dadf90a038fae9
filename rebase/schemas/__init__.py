"""Requests and responses as pydantic models, shared by API, client, CLI and engine. Torch-free."""
