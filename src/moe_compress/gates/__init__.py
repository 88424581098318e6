"""Validation gates: pure decisions over measured values, and their record in Great Expectations."""
