"""What sounds alike among training rows: indexes of their embeddings, interleaved rows, examples for prompts."""
