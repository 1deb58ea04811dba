"""The pass over the prompt and what it can tell. Knows no policy."""
