"""Commands outside the DVC graph."""
