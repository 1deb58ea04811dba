"""The race's results as a markdown table, and beside each target what came out.

A later line of the same device, side and length takes the place of an earlier one, unless it says less: a whole result stays
where a part of one or an error follows. Targets compare seconds per variant: sides that ran fewer variants (kvpress has no
KVMerger, its H2O does not fit everywhere, and time may have been over) are not credited for those missing. The floor is a
bare prefill + bytes that decoding must read ÷ measured bandwidth, for all 15 variants in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TARGETS = {"kvpress": "≥ 25", "isolated": "≥ 7"}
FLOOR_TARGET = 1.25
PARTS_OF_PHASES = ("record_graph_shared_s", "decode_rules_shared_s")  # these seconds lie within another phase
_THRESHOLD_MODE = "kvmerger_paper"
_GIB = 2**30
Record = Mapping[str, Any]


def markdown(records: Iterable[Record]) -> str:
    """One table of sides and one of targets for each device."""
    by_device: dict[str, dict[tuple[int, str], Record]] = {}
    for record in records:
        by_key, key = by_device.setdefault(record["device"], {}), (record["length"], record["side"])
        # >=: of two equally complete ones the later counts.
        if key not in by_key or _completeness(record) >= _completeness(by_key[key]):
            by_key[key] = record
    return "\n\n".join(_of_device(device, by_key) for device, by_key in by_device.items())


def _completeness(record: Record) -> int:
    """0 for an error, 1 for a side that was cut off, 2 for a whole one."""
    return 0 if "error" in record else 1 if record.get("is_partial") else 2


def floor_s(bare: Record, fused: Record) -> float:
    """Seconds that no batched run of these variants can be below: one prefill, and every byte of each step read once."""
    return float(
        bare["seconds"]
        + fused["num_steps"] * (bare["weight_bytes"] + fused["kv_bytes"]) / bare["bytes_per_s"]
    )


def _of_device(device: str, by_key: Mapping[tuple[int, str], Record]) -> str:
    all_versions = {
        ", ".join(f"{name} {number}" for name, number in record["versions"].items()): None
        for record in by_key.values()
    }
    lines = [
        f"{device}; " + "; and ".join(all_versions),
        "",
        "| prompt tokens | side | variants | seconds | per variant | peak memory | code | notes |",
        "|--:|:--|--:|--:|--:|--:|:--|:--|",
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
        return f"{at} | | | | {_code(record)} | {record['error'].splitlines()[0][:120]} |"
    peak = "" if record["peak_bytes"] is None else f"{record['peak_bytes'] / _GIB:.1f} GiB"
    per_variant_s = record["seconds"] / max(1, record["num_variants"])
    return (
        f"{at} {_count(record)} | {record['seconds']:.2f} | {per_variant_s:.3f} | {peak} "
        f"| {_code(record)} | {_notes(record)} |"
    )


def _count(record: Record) -> str:
    """Variants that ran, and of how many where the rest did not have its turn."""
    num_planned = record.get("num_planned", record["num_variants"])
    return f"{record['num_variants']}" + (f" of {num_planned}" if record.get("is_partial") else "")


def _code(record: Record) -> str:
    """The commit; where there was none, or files differed from it, the digest of the sources. Records of old have neither."""
    commit = record.get("commit") or ""
    return (
        commit
        if commit and not commit.endswith("+")
        else " ".join([commit, record.get("sources", "")]).strip()
    )


def _notes(record: Record) -> str:
    notes = []
    if record["side"] == "floor":
        notes.append(f"bare prefill; {record['bytes_per_s'] / 1e12:.2f} TB/s")
    if record.get("way"):
        notes.append(record["way"])
    if record.get("phases"):
        notes.append(", ".join(f"{name} {seconds:.2f}" for name, seconds in _by_phase(record).items()))
    if record.get("kept"):
        shares = (share for label, share in record["kept"].items() if label.startswith(_THRESHOLD_MODE))
        notes += [f"threshold mode kept {share:.1%}" for share in shares]
    if "aa_s" in record:
        notes.append(f"A/A row apart: {record['aa_s']:.2f}")
    if record.get("warm_up_s_each"):
        notes.append(f"warming up {sum(record['warm_up_s_each'].values()):.1f} s")
    others = _without_eager(record.get("peak_bytes_each", {}))
    if any(others):
        notes.append(f"peak without H2O {max(others) / _GIB:.1f} GiB")
    notes += [f"{label}: {why[:60]}" for label, why in record.get("failures", {}).items()]
    return "; ".join(notes)


def _by_phase(record: Record) -> dict[str, float]:
    """Seconds of the phases that follow one upon the other, and ``rest``: what of the run was in none of them."""
    phases = {
        name.removesuffix("_s").removesuffix("_shared"): seconds
        for name, seconds in record["phases"].items()
        if name.endswith("_s") and name not in PARTS_OF_PHASES
    }
    # A service's seconds have the A/A row's batch in them, whose phases are its own.
    aa_s = record["aa_s"] if record["side"] == "service" else 0.0
    return {**phases, "rest": record["seconds"] - aa_s - sum(phases.values())}


def _without_eager(by_label: Mapping[str, float]) -> list[float]:
    """What kvpress's other presses took: H2O's holds n x n weights, and weighs on a mean and more on a peak."""
    return [value for label, value in by_label.items() if not label.startswith("h2o")]


def _targets(length: int, by_key: Mapping[tuple[int, str], Record]) -> list[str]:
    lines = []
    for ours in ("fused", "service"):
        record = by_key.get((length, ours), {})
        if record.get("num_variants"):
            lines += _times(length, by_key, ours, record["seconds"] / record["num_variants"])
    bare, fused = by_key.get((length, "floor"), {}), by_key.get((length, "fused"), {})
    if "seconds" in bare and "seconds" in fused:
        least_s = floor_s(bare, fused)
        lines.append(
            f"| {length:,} | fused ÷ floor ({least_s:.2f} s) | ≤ {FLOOR_TARGET} | {fused['seconds'] / least_s:.2f} |"
        )
    return lines


def _times(length: int, by_key: Mapping[tuple[int, str], Record], ours: str, ours_s: float) -> list[str]:
    """How many times as long each other side takes per variant; targets are for ``fused`` alone."""
    lines = []
    for side in ("kvpress", "kvpress-best", "isolated"):
        theirs = by_key.get((length, side), {})
        if not theirs.get("num_variants"):
            continue
        times = theirs["seconds"] / theirs["num_variants"] / ours_s
        asked = TARGETS.get(side, "") if ours == "fused" else ""
        part = f", {_count(theirs)} presses" if theirs.get("is_partial") else ""
        lines.append(f"| {length:,} | {side} ÷ {ours}, per variant{part} | {asked} | {times:.1f} |")
        others = _without_eager(theirs.get("seconds_each", {})) if side != "isolated" else []
        if others:
            times = sum(others) / len(others) / ours_s
            lines.append(f"| {length:,} | the same, its H2O left out | | {times:.1f} |")
    return lines
