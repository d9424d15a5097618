"""What runs when: the stages of a curriculum, and the launcher of their processes."""
