"""Decisions from events. No clock, no Ray, no rows."""
