"""`+name`: what leaves while answering."""
