"""What the champion of a registered model measured when it was released, so that a successor can be compared."""

from __future__ import annotations

from moe_compress.registry.client import mlflow_client
from moe_compress.registry.promotion import CHAMPION
from moe_compress.registry.versions import aliases_of


def read_champion(model_name: str) -> dict[str, float] | None:
    """Return metric -> value of the run that made the champion; None if no version is the champion.

    What a run measured of its candidate alone is tracked as `candidate.<metric>`, what it compared as `<metric>`.

    Raises:
        RegistryError: if MLflow refuses, or the run is gone.
    """
    with mlflow_client(f"read what the champion of '{model_name}' measured") as client:
        version = aliases_of(client, model_name).get(CHAMPION)
        if version is None:
            return None
        run_id = client.get_model_version(model_name, version).run_id
        metrics = client.get_run(run_id).data.metrics if run_id else {}
    own = {
        name.removeprefix("candidate."): value for name, value in metrics.items() if name.startswith("candidate.")
    }
    return {**metrics, **own}
