"""Does every layout compute what one process computes? A user's own configuration, shrunk to seconds, says so."""
