"""Which rows are owed. Never weights, never a store."""
