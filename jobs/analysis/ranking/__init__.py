"""Which variant is best at which memory: leaders of a column, and the front of bytes against quality."""
