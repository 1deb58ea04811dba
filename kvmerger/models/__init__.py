"""Models whose attention we answer: finding, loading and probing them. Knows no variant."""
