"""One tokeniser and one scorer, for training's validation, evaluation and comparison alike."""
