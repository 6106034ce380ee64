"""Hostile and careless input, by kind, and what must come of it."""
