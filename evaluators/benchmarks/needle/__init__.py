"""The needle grid: one sentence at every depth of contexts of every length."""
