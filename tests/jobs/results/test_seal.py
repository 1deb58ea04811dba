"""A file that was changed in any place is told or read as it was: every byte, every kind of file."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.planning.work import RowKey
from jobs.results.schema import ResultError
from jobs.results.seal import Seal, read_json, read_yaml_text, seal_of, sealed_json, sealed_yaml
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row

_KEYS = [RowKey("a", "file/rows/1", "full"), RowKey("b", "file/rows/1", "knorm@0.5")]
_META = {"sweep_id": "s-1", "args": ["sweep.py", "kvmerger-sha256:" + "0" * 64]}
_SETTINGS = {"name": "kvmerger-sha256:" + "1" * 64, "seed": 3}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results")
    store.write_unit("u1", [make_row("a", score=0.25, prediction="it sat"), make_row("b", kv_bytes=2**33)])
    store.write_plan(_KEYS)
    store.write_run_meta(_META)
    store.write_settings(_SETTINGS)
    return store


def _readings(store: ResultStore) -> Iterator[tuple[Path, Callable[[], Any]]]:
    yield store.rows_folder / "u1.parquet", lambda: store.read_table().to_pylist()
    yield store.root / "plan.json", store.read_plan
    yield store.root / "run_meta.json", store.read_run_meta
    yield store.root / "settings.yaml", store.read_settings_text


def _changed_is_told(path: Path, read: Callable[[], Any], expected: Any, changed: bytes, what: str) -> bool:
    """Whether the change was told; fails if other values were read."""
    path.write_bytes(changed)
    try:
        found = read()
    except ResultError as error:
        assert path.name in str(error) and "delete it" in str(error)
        return True
    assert found == expected, what
    return False


@pytest.mark.parametrize("place", range(4), ids=["rows", "plan", "run_meta", "settings"])
def test_a_flipped_bit_of_any_byte_is_told(store: ResultStore, place: int, seed: int) -> None:
    path, read = list(_readings(store))[place]
    whole, expected, random_bit = path.read_bytes(), read(), random.Random(seed)
    for at in range(len(whole)):
        bit = 1 << random_bit.randrange(8)
        changed = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
        # Where the digest is no longer seen, the rest is whole: the other mark beside it still says that there was one.
        assert _changed_is_told(path, read, expected, changed, f"bit {bit} of byte {at}")


@pytest.mark.parametrize("place", range(4), ids=["rows", "plan", "run_meta", "settings"])
def test_a_file_cut_off_anywhere_or_overwritten_is_told(store: ResultStore, place: int, seed: int) -> None:
    path, read = list(_readings(store))[place]
    whole, expected, draw = path.read_bytes(), read(), random.Random(seed)
    for length in {0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))}:
        _changed_is_told(path, read, expected, whole[:length], f"cut to {length}")
    for _ in range(20):
        begin = draw.randrange(len(whole))
        zeros = b"\0" * min(draw.randrange(1, 4096), len(whole) - begin)
        changed = whole[:begin] + zeros + whole[begin + len(zeros) :]
        _changed_is_told(path, read, expected, changed, f"{len(zeros)} zeros at {begin}")


def test_pages_have_checksums_for_other_readers_too(store: ResultStore) -> None:
    path = store.rows_folder / "u1.parquet"
    whole = path.read_bytes()
    at = whole.index(b"it sat")
    path.write_bytes(whole[:at] + b"we sat" + whole[at + 6 :])
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(path, page_checksum_verification=True, partitioning=None)


def test_what_stands_in_the_file_is_not_taken_for_its_digest(store: ResultStore) -> None:
    assert store.read_run_meta() == _META
    assert "kvmerger-sha256:1111" in store.read_settings_text()
    assert store.read_plan() == tuple(_KEYS)


def test_json_and_yaml_are_sealed_and_read_back() -> None:
    assert read_json(sealed_json({"a": [1, "é", "😀"]})) == {"a": [1, "é", "😀"]}
    # Half of a character, which no other file could take: of a path that is no UTF-8.
    assert read_json(sealed_json({"a": "x\udce9y"})) == {"a": "x?y"}
    assert read_yaml_text(sealed_yaml("a: 1\n")) == "a: 1\n"
    assert seal_of(sealed_json({})) is seal_of(sealed_yaml("a: 1")) is Seal.INTACT


def test_files_from_before_are_read_and_told_once(
    store: ResultStore, caplog: pytest.LogCaptureFixture
) -> None:
    table = store.read_table()
    pq.write_table(table, store.rows_folder / "u1.parquet")
    (store.root / "settings.yaml").write_text("name: old\n")
    assert store.read_table() == table
    assert ResultStore(store.root).read_settings_text() == "name: old\n"
    assert [record.message.count("unprotected") for record in caplog.records] == [1]


def test_a_sound_folder_says_nothing(store: ResultStore, caplog: pytest.LogCaptureFixture) -> None:
    for _, read in _readings(store):
        read()
    assert caplog.records == []


def test_edited_settings_are_read_once_their_digest_is_taken_out(store: ResultStore) -> None:
    store.write_settings({"name": "edited", "seed": 3})
    path = store.root / "settings.yaml"
    first, *rest, last = path.read_text().splitlines()
    assert "takes out both" in first and "sha256" in last
    path.write_text("\n".join([first, *rest, "seed: 4", last]))
    with pytest.raises(ResultError, match="damaged"):
        store.read_settings_text()
    path.write_text("\n".join([*rest, "seed: 4"]))
    assert store.read_settings_text().endswith("seed: 4")
