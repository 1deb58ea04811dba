"""Weights behind the seam: finding, loading, probing. Knows no variant."""
