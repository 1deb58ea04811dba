"""A user's policy file whose `compress` does what a test wants: `OWN_POLICY.format(body=…)`; it may use os."""

OWN_POLICY = """
import os
from dataclasses import dataclass
from kvmerger import KEY_NORMS, ScoringPolicy

@dataclass(frozen=True)
class Mine(ScoringPolicy):
    def scores(self, evidence):
        return -evidence.get(KEY_NORMS)

    def compress(self, layer, evidence, budget):
        {body}
"""
