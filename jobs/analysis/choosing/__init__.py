"""Which policy, at which memory: what is certified to lose little, and what fits. Pure over result rows."""
