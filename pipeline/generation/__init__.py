"""From features to captions: beam search, sampling, greedy decoding."""
