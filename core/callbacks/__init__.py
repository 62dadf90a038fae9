"""Callbacks: which are asked for, the rows that record them, and the rules for where they may go."""
