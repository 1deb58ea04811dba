"""The pass over the prompt, and the evidence that policies rank by. Knows no policy."""
