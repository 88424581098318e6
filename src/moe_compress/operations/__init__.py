"""What `kedro compress` does: is a new run needed, which version is promoted, and is it what was registered."""
