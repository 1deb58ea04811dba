"""Memory as people write it, to the byte, and nothing that could mean two amounts."""

import pytest

from jobs.console.byte_sizes import ByteSizeError, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 GB", 24 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("0.1 kb", 100),
        ("80gib ", 80 * 2**30),
        ("2TB", 2 * 10**12),
        ("512B", 512),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "24G", "GiB", "-1GiB", "0GiB", "24iB", "much", "", "1e9B", "nanGB"])
def test_anything_else_is_told(text: str) -> None:
    with pytest.raises(ByteSizeError, match="as 24GiB"):
        parse_bytes(text)
