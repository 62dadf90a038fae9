"""Signed callbacks: the dispatcher process, its sender and the SSRF guard."""
