"""What each kernel computes, in plain torch: the definition. Never fast, always right."""
