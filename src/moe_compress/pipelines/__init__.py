"""One file a stage: node functions of a few lines, then `create_pipeline()`; only here are stages wired."""
