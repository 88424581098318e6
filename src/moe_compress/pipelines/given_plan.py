"""Where a plan that is given lies (`select.from`): a file, or what the domain's newest sweep chose."""

from __future__ import annotations

from pathlib import Path

from moe_compress.errors import ParameterError
from moe_compress.pipelines.parameters import SelectParameters

SWEEPS = Path("data/05_model_input/sweeps")
"""Where sweeps leave what they chose: `<domain>/<key>/plan.json`, their result beside it."""


def locate(given: str, domain: str) -> Path:
    """Return the file that `select.from` names; `sweep` is the newest choice of the domain's sweep.

    Raises:
        ParameterError: if no sweep of the domain has chosen a plan.
    """
    if given != "sweep":
        return Path(given)
    choices = sorted((SWEEPS / domain).glob("*/plan.json"), key=lambda path: path.stat().st_mtime_ns)
    if not choices:
        raise ParameterError(
            f"select.from is 'sweep', and no sweep of '{domain}' has chosen a plan; run "
            f"kedro run --pipelines=sweep_{domain} first"
        )
    return choices[-1]


def find_given(chosen: SelectParameters, domain: str) -> Path | None:
    """Return the file of the plan that is given, None where one is to be made.

    Raises:
        ParameterError: if there is no such file.
    """
    if chosen.source is None:
        return None
    path = locate(chosen.source, domain)
    if not path.is_file():
        raise ParameterError(
            f"select.from names {path}, and there is no such file; give the path of a plan, or null to make one"
        )
    return path
