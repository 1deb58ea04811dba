"""KV-cache compression policies, and an engine that runs many of them on one prefill. Imports nothing on its own."""

RESULTS_VERSION = 1
"""Raise it when the engine itself gives other numbers: rows of the old version then no longer count as done."""
