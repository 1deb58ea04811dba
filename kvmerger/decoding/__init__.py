"""Tokens come, rows answer: extending, stepping, recording. Never which variant a row is."""
