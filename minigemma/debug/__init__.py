"""Somebody's port beside our pass: which op is the first wrong one, and which known mistake made it."""
