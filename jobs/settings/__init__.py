"""What may be asked. Never torch, Ray or MLflow."""
