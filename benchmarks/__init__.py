"""Measurements and endurance runs: one command each, a table for people, one JSON object on the last line."""
