"""The tables by which bits are given out are what the benchmark measures."""

from statistics import fmean

import pytest

from bench.engine.width_errors import measured
from kvmerger.policies.widths.rdkv import K_ERROR, V_ERROR


@pytest.mark.demo
def test_the_tables_are_measured_on_the_demo_model() -> None:
    for (side, width), errors in measured("demo", 768).items():
        table = K_ERROR if side == "keys" else V_ERROR
        # Other machines round otherwise, by far less than this.
        assert table[width] == pytest.approx(fmean(errors), rel=0.02)
