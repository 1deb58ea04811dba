"""The parts merging policies are made of. Each works on all heads of a layer at once and is deterministic."""
