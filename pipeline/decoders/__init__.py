"""The caption decoders, and the file that a trained one is kept in."""
