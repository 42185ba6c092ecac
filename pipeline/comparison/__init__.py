"""Comparison of runs, with significance tests."""
