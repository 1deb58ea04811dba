"""Policies whose slots are merged tokens: KVMerger, its controls, ZeroMerge."""
