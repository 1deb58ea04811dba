"""What is held: one layer's slots, and rows of different lengths in one place. Values; calls no kernel."""
