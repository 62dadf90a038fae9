"""Signed callbacks: the dispatcher process, its sender and the guard of where callbacks may go."""
