"""Ray, here only. Decides nothing."""
