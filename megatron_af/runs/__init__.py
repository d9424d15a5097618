"""Where the files of runs lie, what a run follows from, and what it came to: paths, digests, records, results."""
