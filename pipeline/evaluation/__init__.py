"""The reports of an evaluation, and what is computed for them alone."""
