"""Teacher forcing: the trainer and its parts."""
