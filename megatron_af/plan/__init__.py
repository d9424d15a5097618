"""Memory, time and layout of a run before anything starts, as formulas."""
