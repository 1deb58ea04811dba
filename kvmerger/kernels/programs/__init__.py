"""Triton programs, as the device runs them. Launched by `kernels.triton` alone."""
