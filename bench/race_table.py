"""The race's results as a markdown table, and beside each target what came out.

A later line of the same device, side and length takes the place of an earlier one. Targets compare seconds per variant: sides
that ran fewer variants (kvpress has no KVMerger, and its H2O does not fit everywhere) are not credited for those missing.
The floor is a bare prefill + bytes that decoding must read ÷ measured bandwidth, for all 15 variants in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TARGETS = {"kvpress": "≥ 25", "isolated": "≥ 7"}
FLOOR_TARGET = 1.25
_GIB = 2**30
Record = Mapping[str, Any]


def markdown(records: Iterable[Record]) -> str:
    """One table of sides and one of targets for each device."""
    by_device: dict[str, dict[tuple[int, str], Record]] = {}
    for record in records:
        by_device.setdefault(record["device"], {})[record["length"], record["side"]] = record
    return "\n\n".join(_of_device(device, by_key) for device, by_key in by_device.items())


def floor_s(bare: Record, fused: Record) -> float:
    """Seconds that no batched run of these variants can be below: one prefill, and every byte of each step read once."""
    return float(
        bare["seconds"]
        + fused["num_steps"] * (bare["weight_bytes"] + fused["kv_bytes"]) / bare["bytes_per_s"]
    )


def _of_device(device: str, by_key: Mapping[tuple[int, str], Record]) -> str:
    versions = next(iter(by_key.values()))["versions"]
    lines = [
        f"{device}; " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        "",
        "| prompt tokens | side | variants | seconds | per variant | peak memory | notes |",
        "|--:|:--|--:|--:|--:|--:|:--|",
        *(_row(record) for _, record in sorted(by_key.items(), key=lambda pair: pair[0][0])),
        "",
        "| prompt tokens | what | asked | measured |",
        "|--:|:--|--:|--:|",
        *(line for length in sorted({length for length, _ in by_key}) for line in _targets(length, by_key)),
    ]
    return "\n".join(lines)


def _row(record: Record) -> str:
    at = f"| {record['length']:,} | {record['side']} |"
    if "error" in record:
        return f"{at} | | | | {record['error'].splitlines()[0][:120]} |"
    peak = "" if record["peak_bytes"] is None else f"{record['peak_bytes'] / _GIB:.1f} GiB"
    per_variant_s = record["seconds"] / max(1, record["num_variants"])
    return (
        f"{at} {record['num_variants']} | {record['seconds']:.2f} | {per_variant_s:.3f} | {peak} "
        f"| {_notes(record)} |"
    )


def _notes(record: Record) -> str:
    notes = []
    if record["side"] == "floor":
        notes.append(f"bare prefill; {record['bytes_per_s'] / 1e12:.2f} TB/s")
    if record.get("way"):
        notes.append(record["way"])
    if record.get("phases"):
        phases = record["phases"]
        names = ("prefill_shared_s", "compress_s", "decode_shared_s", "fidelity_shared_s")
        notes.append(
            ", ".join(
                f"{name.removesuffix('_s').removesuffix('_shared')} {phases.get(name, 0):.2f}"
                for name in names
            )
        )
    if record["side"] == "fused":
        notes.append(f"A/A row apart: {record['aa_s']:.2f}")
    others = _without_eager(record.get("peak_bytes_each", {}))
    if any(others):
        notes.append(f"peak without H2O {max(others) / _GIB:.1f} GiB")
    notes += [f"{label}: {why[:60]}" for label, why in record.get("failures", {}).items()]
    return "; ".join(notes)


def _without_eager(by_label: Mapping[str, float]) -> list[float]:
    """What kvpress's other presses took: H2O's holds n x n weights, and weighs on a mean and more on a peak."""
    return [value for label, value in by_label.items() if not label.startswith("h2o")]


def _targets(length: int, by_key: Mapping[tuple[int, str], Record]) -> list[str]:
    fused = by_key.get((length, "fused"))
    if fused is None or "error" in fused:
        return []
    ours_s = fused["seconds"] / fused["num_variants"]
    lines = []
    for side in ("kvpress", "kvpress-best", "isolated"):
        theirs = by_key.get((length, side), {})
        if theirs.get("num_variants"):
            times = theirs["seconds"] / theirs["num_variants"] / ours_s
            asked = TARGETS.get(side, "")
            lines.append(f"| {length:,} | {side} ÷ fused, per variant | {asked} | {times:.1f} |")
            others = _without_eager(theirs.get("seconds_each", {})) if side != "isolated" else []
            if others:
                times = sum(others) / len(others) / ours_s
                lines.append(f"| {length:,} | the same, its H2O left out | | {times:.1f} |")
    bare = by_key.get((length, "floor"), {})
    if "seconds" in bare:
        least_s = floor_s(bare, fused)
        lines.append(
            f"| {length:,} | fused ÷ floor ({least_s:.2f} s) | ≤ {FLOOR_TARGET} | {fused['seconds'] / least_s:.2f} |"
        )
    return lines
