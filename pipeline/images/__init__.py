"""Find, read and decode image files, single or in zips."""
