"""MLflow, here only. Never decides whether a run goes on after its start."""
