"""params.yaml: its schema, and the loader that checks it."""
