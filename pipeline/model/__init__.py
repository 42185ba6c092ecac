"""Decoders behind one small interface, and the search that all of them share."""
