"""What is computed on tensors: attention, rankings, merging. A kernel's reference defines it, and its faster form agrees."""
