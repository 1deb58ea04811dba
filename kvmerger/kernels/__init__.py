"""Attention over ragged caches, and of a prompt on itself. What has a reference is defined by it; faster kernels agree."""
