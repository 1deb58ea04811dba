"""Policies whose prompt decides how many slots stay; they take no budget."""
