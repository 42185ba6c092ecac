"""The caption decoders, and the file of a trained one."""
