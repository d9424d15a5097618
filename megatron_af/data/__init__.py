"""What training reads: manifest rows and their text, the stateless sampler, batches, the feature cache."""
