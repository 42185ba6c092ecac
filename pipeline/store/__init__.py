"""Files on disk: one module knows each format, and writes, reads and checks it."""
