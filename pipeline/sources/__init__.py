"""Download a data set, and parse the formats of its captions."""
