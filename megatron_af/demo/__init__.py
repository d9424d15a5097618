"""Scenes with known truth, mixed of free recordings, and the run of ``make demo``."""
