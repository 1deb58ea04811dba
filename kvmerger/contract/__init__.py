"""What every policy must do, for our tests and for a user's `--check-policy`."""
