"""Measure a checkpoint (benchmark items, perplexity per domain, speed, size) and compare two of them."""
