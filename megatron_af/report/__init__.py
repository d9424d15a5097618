"""A run on one page to look at and to listen to: how it learnt, what it answers, and where its answers look."""
