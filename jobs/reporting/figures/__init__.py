"""What the report draws: one figure a file, pure from rows to plain dataclasses and from those to SVG."""
