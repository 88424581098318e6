"""Which serving engines will load a compressed checkpoint, and why not: facts with sources, and what follows."""
