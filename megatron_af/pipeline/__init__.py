"""What runs when: one graph of steps, what a step does, who starts its processes, and the record of it."""
