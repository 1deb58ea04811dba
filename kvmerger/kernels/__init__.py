"""Attention over ragged caches. `reference` defines the results; faster kernels have its signatures."""
