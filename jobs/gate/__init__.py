"""Tonight against a baseline. Pure; never runs or sends anything."""
