"""What may be asked to shrink a cache: one file a method, found by its name. Never writes a cache, never asks who calls."""
