"""Captions as tokens: the tokeniser, the table of captions, the vocabulary."""
