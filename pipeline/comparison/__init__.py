"""Runs compared, with significance."""
