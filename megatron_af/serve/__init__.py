"""Answers outside of training: requests of any origin to a released model, in this process or behind a server."""
