"""Image files, single and in zips: found, read and decoded."""
