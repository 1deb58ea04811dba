"""LongBench and LongBench-E: tasks, templates and how a row becomes an item."""
