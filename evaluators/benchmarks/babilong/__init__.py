"""BABILong: facts spread over books."""
