"""The model registry: checkpoints registered where they lie, and what a run leaves behind in MLflow."""
