"""The service around the engine: which work, where, in what order, and what became of it.

Ray and MLflow are known to named files of this package only; settings, plan, results and report load without them.
"""
