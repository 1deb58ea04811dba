"""What changes where kept slots stand. Never which tokens stay."""
