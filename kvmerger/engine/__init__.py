"""Who answers with whom, on one prefill."""

from kvmerger.engine.engine import Engine

__all__ = ["Engine"]
