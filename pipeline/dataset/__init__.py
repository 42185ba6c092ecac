"""Features and captions of a split, batched for training."""
