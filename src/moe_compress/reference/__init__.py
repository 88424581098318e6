"""The embedded reference model: its sources, its domain data, its training and its measurement."""
