"""The service around the engine: which work, where, in what order, and what became of it.

Ray is imported in `jobs/execution/on_ray` only and MLflow in `jobs/tracking` only; settings, plan, results and report
load without them.
"""
