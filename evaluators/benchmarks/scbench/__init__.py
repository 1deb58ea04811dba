"""SCBench: contexts that are asked many times."""
