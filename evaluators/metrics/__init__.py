"""Every metric is a pure function of texts, returns 0 to 1, and registers itself on import."""
