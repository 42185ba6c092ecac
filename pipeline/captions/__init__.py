"""Captions as tokens: the tokenizer, the table of captions, the vocabulary."""
