"""What of a machine works for training, what will be slow, and what mends it."""
