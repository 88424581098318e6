"""One compression run as people read it: a terminal table, figures, a self-contained page, a model card."""
