"""Choosing among the captions that a search finds."""
