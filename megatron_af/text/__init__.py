"""Text: tokenizer with Audio Flamingo's special tokens, templates and loss labels."""
