"""Policies that give slots and channels widths of their own: how many bits each is worth, none at all among them."""
