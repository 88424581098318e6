"""The folder is the registry: load the modules of a package by name, and suggest near misses."""

import importlib
import pkgutil
from difflib import get_close_matches
from types import ModuleType

from moe_compress.errors import PluginError


def list_plugins(package: ModuleType) -> tuple[str, ...]:
    """Return the names of a package's public modules, sorted; nothing is imported."""
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load_plugin(package: ModuleType, name: str) -> ModuleType:
    """Import one public module of a package.

    Raises:
        PluginError: if the package has no module of that name.
    """
    available = list_plugins(package)
    if name not in available:
        close = get_close_matches(name, available, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        folder = package.__name__.rpartition(".")[2]
        raise PluginError(f"no '{name}' in {folder}/{hint}; available: {', '.join(available)}")
    return importlib.import_module(f"{package.__name__}.{name}")
