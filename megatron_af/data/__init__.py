"""Data: manifest rows, the stateless sampler, batches, the feature cache, and the demo's scenes."""
