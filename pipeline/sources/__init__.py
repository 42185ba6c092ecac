"""Where a data set comes from: downloads, and the formats of captions."""
