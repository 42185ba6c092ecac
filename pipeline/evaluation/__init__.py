"""Ensembles, the statistics of captions, and the reports of an evaluation."""
