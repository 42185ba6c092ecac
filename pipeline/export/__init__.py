"""A captioner written for use elsewhere, without this repository."""
