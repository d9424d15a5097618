"""Can a configuration run? Its numbers, its model, its files: all problems at once, before anything is made."""
