"""ZeroSCROLLS: tasks, and how a row becomes an item."""
