"""The frozen CNN: its trunk, what it is shown, and how it is run."""
