"""What a row is and where it lies. The only writer."""
