"""A results folder as one value, above all that is derived from its rows."""
