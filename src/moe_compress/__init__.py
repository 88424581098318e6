"""Compress Mixture-of-Experts language models for a domain: collect, select, rewrite, prove, gate, release."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return `load_model`; it brings transformers, which commands that load no model should not wait for."""
    if name == "load_model":
        from moe_compress.loading import load_model

        return load_model
    raise AttributeError(f"module 'moe_compress' has no attribute '{name}'")
