"""One prompt, or several, under every variant: which rows answer together, on one prefill each."""

from kvmerger.engine.engine import Engine

__all__ = ["Engine"]
