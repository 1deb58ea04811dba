"""RULER, generated: one file for each kind of task, and the filler between what is asked."""
