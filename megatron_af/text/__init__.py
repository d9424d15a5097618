"""The tokenizer, with Audio Flamingo's special tokens."""
