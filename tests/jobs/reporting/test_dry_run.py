"""A forecast is printed with what it was made from."""

from jobs.analysis.forecast import Forecast
from jobs.reporting.dry_run import shown_source


def test_a_forecast_names_its_source() -> None:
    named = shown_source(Forecast(60.0, 1, 10, ("NVIDIA H200", None)))
    assert "1 finished units" in named
    assert named.endswith("on NVIDIA H200, a device whose name is unknown")
    assert "2,000 M parameters" in shown_source(Forecast(60.0, 0, 2 * 10**9))
