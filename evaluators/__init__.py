"""What is asked of a model and how answers are scored: text and numbers only, no torch, ray or mlflow."""
