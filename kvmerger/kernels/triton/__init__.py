"""Launchers: tensors in, tensors out, with the reference's signatures."""
