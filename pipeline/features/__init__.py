"""The feature cache, and the recipe of its features."""
