"""Hold back what libraries log of their own insides, for the length of a block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_back(*packages: str, below: int = logging.ERROR) -> Iterator[None]:
    """Silence inside the block what the packages' loggers say below a level."""
    loggers = [logging.getLogger(package) for package in packages]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(below)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
