"""Rows become numbers with their doubt. Never a format string, never a file but through `results`."""
