"""What becomes of the tokens a ranking drops: one file per way to merge them into the kept ones."""

from kvmerger.policies.reducers import compensated, d2o, keepkv, nearest, runs, weighted_kv

__all__ = ["compensated", "d2o", "keepkv", "nearest", "runs", "weighted_kv"]
