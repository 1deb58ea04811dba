"""A unit of work becomes rows."""
