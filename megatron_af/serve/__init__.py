"""Answers outside of training: requests of any origin to a trained model, in this process or behind a server."""
