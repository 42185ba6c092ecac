"""One module per DVC stage: load, build, run, write."""
