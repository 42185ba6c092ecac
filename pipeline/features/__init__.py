"""The feature cache, and the recipe that says how its features were made."""
