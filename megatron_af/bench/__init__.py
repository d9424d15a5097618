"""Measurements that ``tools/bench.py`` runs; each module has ``measure`` (numbers) and ``tables`` (for people)."""
