"""What makes values comparable across runs: digests, provenance and plain JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Provenance = Mapping[str, str]
"""Where a value came from: base id, revision and digests, data digests, parameters, seed, versions."""

FloatArray = NDArray[np.float64]


def digest_of(value: object) -> str:
    """Return the sha256 of a JSON-able value, the same for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """Return a dataclass of this module as plain JSON-able values (arrays become nested lists)."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value) if isinstance(value, Path) else value
