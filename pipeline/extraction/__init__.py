"""From images to features: preprocessing, the CNN, the writer of the cache."""
