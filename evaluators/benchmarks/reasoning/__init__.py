"""School and competition mathematics: short questions, long answers."""
