"""What a trained model says and how it hears: generation, embeddings, attention over a recording."""
