"""Checkpoints as files: read their names, plan a rewrite from names alone, stream it."""
