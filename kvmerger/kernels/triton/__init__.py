"""Launchers of the Triton programs: tensors in, tensors out, with the references' signatures."""
