"""Other projects' policies, called as they are. Never a method of their own."""
