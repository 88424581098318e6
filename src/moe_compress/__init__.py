"""Compress Mixture-of-Experts language models for a domain: collect, select, rewrite, prove, gate, release."""

__version__ = "0.1.0"
