"""A method's own parameters: a frozen block with defaults, checked before anything else runs."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from moe_compress.errors import ParameterError
from moe_compress.types import Budget, MoELayout


class MethodParameters(BaseModel):
    """Base of a method's `PARAMETERS`; with no fields of its own it is the block of a method without any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def merges(self, budget: Budget, layout: MoELayout) -> bool:
        """Return whether a plan made with these parameters may average experts, if any have to go."""
        return False


def parse_parameters(
    method: str, block: type[MethodParameters], given: Mapping[str, Any] | None
) -> MethodParameters:
    """Return a method's parameters, its defaults where none are given.

    Args:
        method: its name, for the messages.
        block: the class of its parameters.
        given: name -> value, as written under `select.parameters`.

    Raises:
        ParameterError: if a name is unknown, or a value is not what its field allows.
    """
    given = dict(given or {})
    if unknown := sorted(set(given) - set(block.model_fields)):
        raise ParameterError(_unknown(method, unknown[0], sorted(block.model_fields)))
    try:
        return block.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "parameters"
        says = first["msg"][:1].lower() + first["msg"][1:]
        raise ParameterError(
            f"{method}'s parameter '{name}' is {first['input']!r}, but {says}; correct it (select.parameters)"
        ) from error


def _unknown(method: str, name: str, available: list[str]) -> str:
    if not available:
        return f"{method} has no parameter '{name}', nor any other; take it out (select.parameters)"
    close = get_close_matches(name, available, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"{method} has no parameter '{name}'{hint}; available: {', '.join(available)} (select.parameters)"
