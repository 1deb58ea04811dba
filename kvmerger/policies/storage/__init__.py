"""What slots are stored in once they are chosen and merged. Never which slots, and never the storing itself."""
