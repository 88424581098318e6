"""Move the champion alias to a gated candidate, and back."""

from __future__ import annotations

from moe_compress.errors import RegistryError
from moe_compress.registry.client import mlflow_client
from moe_compress.registry.versions import RegisteredVersion, aliases_of, resolve

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


def promote(model_name: str) -> RegisteredVersion:
    """Point `champion` at the candidate and `previous` at the champion before it; twice is as once.

    Raises:
        RegistryError: if there is no candidate, or MLflow refuses.
    """
    candidate = resolve(model_name, CANDIDATE)
    with mlflow_client(f"promote '{model_name}' version {candidate.version}") as client:
        champion = aliases_of(client, model_name).get(CHAMPION)
        if champion == candidate.version:
            return candidate
        # The way back is laid before the step, so an interruption never loses the old champion.
        if champion is not None:
            client.set_registered_model_alias(model_name, PREVIOUS, champion)
        client.set_registered_model_alias(model_name, CHAMPION, candidate.version)
    return candidate


def roll_back(model_name: str) -> RegisteredVersion:
    """Point `champion` back at the version before the last promotion, one step only.

    Raises:
        RegistryError: if no earlier champion is known, or MLflow refuses.
    """
    with mlflow_client(f"roll back '{model_name}'") as client:
        aliases = aliases_of(client, model_name)
        if PREVIOUS in aliases:
            client.set_registered_model_alias(model_name, CHAMPION, aliases[PREVIOUS])
            client.delete_registered_model_alias(model_name, PREVIOUS)
            return resolve(model_name, CHAMPION)
    raise RegistryError(
        f"model '{model_name}' has no earlier champion to go back to; promote a candidate instead "
        f"(aliases: {', '.join(sorted(aliases)) or 'none'})"
    )
