"""Which tokens stay: one file a ranking."""
