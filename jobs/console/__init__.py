"""Flags, exit codes, signals, paths. Knows no sweep."""
