"""One sweep, one night, from start to end. Never a formula."""
