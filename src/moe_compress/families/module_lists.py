"""Modules that quantisation settings name: an expert that is gone or renumbered must be so there too."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moe_compress.errors import PlanError
from moe_compress.families.quantised import find_settings
from moe_compress.types import ExpertGroup, TensorMap

_Groups = Mapping[int, tuple[ExpertGroup, ...]]
_NUMBER = re.compile(r"\d+")
_NAMES_EXPERT = re.compile(r"(?<!shared_)experts?\\?\.\(?\d")


def update_module_lists(
    config: Mapping[str, Any], tensor_map: TensorMap, groups: _Groups, dropped: frozenset[str]
) -> dict[str, Any]:
    """Return a config whose quantisation settings name modules as they are called in the new checkpoint.

    Every list of names in the settings is gone through (`modules_to_not_convert`, `ignored_layers`, `ignore`,
    `targets`): entries of experts and layers that are gone are removed, those of renumbered experts renamed.

    Args:
        config: the `config.json`.
        tensor_map: what the source's tensors are.
        groups: layer -> which old experts make up each new one; the first member's entry stands for all.
        dropped: tensors that are left out.

    Raises:
        PlanError: if an entry names an expert in a way that cannot be renamed, such as a regular expression.
    """
    settings = find_settings(config)
    if not settings:
        return dict(config)
    experts = {}
    for name, (start, end) in tensor_map.expert_spans.items():
        role = tensor_map.roles[name]
        assert role.layer is not None
        experts[name[:end]] = (role.layer, role.expert, start)

    def rename(entry: str) -> Iterator[str]:
        if any(name.startswith(f"{entry}.") for name in dropped):
            return
        for number in _NUMBER.finditer(entry):
            if entry[: number.end()] in experts and entry[number.end() : number.end() + 1] in ("", "."):
                layer, expert, start = experts[entry[: number.end()]]
                for new, group in enumerate(groups[layer]):
                    if group.members[0] == expert:
                        yield f"{entry[:start]}{new}{entry[number.end() :]}"
                return
        if _NAMES_EXPERT.search(entry):
            raise PlanError(
                f"config.json's quantisation names '{entry}', which cannot follow the experts' new numbers; "
                "list such modules by their full names"
            )
        yield entry

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [name for entry in value for name in rename(entry)]
        return value

    return {
        key: walk(value)
        if value is settings
        else {name: walk(v) if v is settings else v for name, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }
