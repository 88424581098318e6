"""A run's values that live under keys: bound to them, and outdated by what is made anew before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro.framework.project import pipelines
from kedro.io import DataCatalog

from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.pipelines.key_parts import as_keys, find_demonstrations, key_parts
from moe_compress.pipelines.run_keys import stage_keys


class KeyedValues:
    """The datasets of a run's domains that live under keys.

    Args:
        catalog: the run's datasets.
        is_fresh: whether the run makes everything anew.
    """

    def __init__(self, catalog: DataCatalog, is_fresh: bool) -> None:
        self._catalog, self._is_fresh = catalog, is_fresh
        self._keyed: dict[str, KeyedDataset] = {}

    def bind(self, parameters: Mapping[str, Any], domain: str, command: str) -> None:
        """Give a domain's datasets its keys, those of other pipelines too: what they hold may become outdated.

        Args:
            parameters: the run's parameters as Kedro resolved them.
            domain: the domain.
            command: what starts this run again.

        Raises:
            MoeCompressError: if there is nothing to take a digest of.
        """
        catalog = self._catalog
        rows = find_demonstrations(parameters, domain, catalog)
        folder = catalog["domains_folder"].load()
        keys = stage_keys(parameters, domain, catalog["base_model"].load().identity, rows, folder)
        keys |= as_keys(key_parts(parameters, domain, rows, folder))
        for name in names_of(domain):
            value = catalog.get(name)
            if isinstance(value, KeyedDataset):
                self._keyed[name] = value
            if value is not None and hasattr(value, "bind"):
                value.bind({**keys, "command": command})

    def follow_save(self, name: str, data: Any) -> None:
        """Have what was saved count as there, and what was made from its predecessor as missing.

        So nothing old is taken for what goes with something new, wherever a fresh run ends. That is so of what this
        run's domains have under this run's keys; mixtures and what other parameters made stay as they are.
        """
        value = self._keyed.get(name)
        if value is None:
            return
        if self._is_fresh or value.is_outdated:
            for made in find_made_from(name) & self._keyed.keys():
                self._keyed[made].outdate()
        value.follow_save(data)


def names_of(domain: str) -> set[str]:
    """Return the names of all values of a domain, in whatever pipeline."""
    return {name for each in pipelines.values() for name in each.datasets() if name.startswith(f"{domain}.")}


def find_made_from(name: str) -> set[str]:
    """Return the names of all values that are made from one, in whatever pipeline and however many steps."""
    takers = [each for each in pipelines.values() if name in each.datasets()]
    return {made for each in takers for made in each.from_inputs(name).all_outputs()}
