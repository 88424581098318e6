"""A team's servers, all real: tracked and registered there, consumed from there, and nothing lost when one goes."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import urlsplit

import mlflow
import pytest
from click.testing import CliRunner
from tests.pipelines import servers
from tests.pipelines.conftest import forget_the_experiment
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_compress.operations.promote import promote_model
from moe_compress.registry.versions import resolve
from moe_compress.tracking_commands import tracking

SECRETS = {
    "AWS_ACCESS_KEY_ID": "planted-key-id",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "HF_TOKEN": "planted-hf-token",
    "DATABASE_URL": "postgresql://someone:planted-url@database/x",
}
SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
    "MLFLOW_TRACKING_USERNAME": "",  # so that what the run sets is taken away again
    "MLFLOW_TRACKING_PASSWORD": "",
}
# MLflow itself records who ran what, so the name is no secret.
USER, PASSWORD, DATABASE_PASSWORD = "ann", "planted-password", "planted-database"

missing = [name for name in ("moto", "boto3", "psycopg2") if find_spec(name) is None]
if servers.find_postgres() is None:
    missing.append("PostgreSQL")
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (extra 'servers')")


class Team:
    """The servers' handles, and what they hold."""

    def __init__(self, tracking, database, store):
        self.tracking, self.database, self.store = tracking, database, store

    def objects(self):
        """Return name -> content of all that is stored."""
        client, bucket = self._client(), servers.BUCKET
        names = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
        return {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}

    def weights(self):
        """Return name -> when it was stored, of all weight files."""
        listed = self._client().list_objects_v2(Bucket=servers.BUCKET)["Contents"]
        return {each["Key"]: each["LastModified"] for each in listed if each["Key"].endswith(".safetensors")}

    def _client(self):
        import boto3

        return boto3.client("s3", endpoint_url=self.store)

    def dump(self):
        parts = urlsplit(self.database)
        command = [servers.find_postgres() / "pg_dump", "-h", "127.0.0.1", "-p", str(parts.port), "-U", "mlflow"]
        env = {**os.environ, "PGPASSWORD": DATABASE_PASSWORD}
        return subprocess.run([*command, "postgres"], capture_output=True, check=True, env=env).stdout

    def run_of(self, experts):
        """Return the newest run that kept this many experts."""
        asked = f"params.select.budget.experts_per_layer = '{experts}'"
        return mlflow.search_runs(search_all_experiments=True, filter_string=asked, output_format="list")[0]


@pytest.fixture
def team(tmp_path_factory, project, monkeypatch):
    folder = tmp_path_factory.mktemp("servers")
    (project.folder / "conf/local/parameters_evaluate.yml").write_text(
        "evaluate: {tasks: [medical], limit: 8, heldout_limit: 2, prompts: 2, max_new_tokens: 8, batch_sizes: []}\n"
    )
    for name, value in {**SECRETS, **SETTINGS}.items():
        monkeypatch.setenv(name, value)
    forget_the_experiment(monkeypatch)
    with servers.postgres(DATABASE_PASSWORD) as database, servers.object_store(folder) as store:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", store)
        made = Team(servers.TrackingServer(folder, database), database, store)
        made._client().create_bucket(Bucket=servers.BUCKET)
        made.tracking.start()
        address = made.tracking.address.replace("//", f"//{USER}:{PASSWORD}@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        try:
            yield made
        finally:
            made.tracking.stop()
            mlflow.set_tracking_uri(None)


@contextmanager
def after_nodes(**actions):
    """Do something once a node has run, as Kedro announces it."""

    class Listener(logging.Handler):
        def emit(self, record):
            act = actions.pop(record.getMessage().removeprefix("Completed node: medical."), None)
            if act:
                act()

    logger, listener = logging.getLogger("kedro.runner.sequential_runner"), Listener(level=logging.INFO)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
    assert not actions, f"{list(actions)} never ran"


def budget_of(experts):
    return [f"select.budget.experts_per_layer={experts}", "select.budget.fraction_dropped=null"]


def prune(project, experts, *params):
    return project.run(
        "--pipelines=prune_medical", "--fresh", f"--params={','.join([*budget_of(experts), *params])}"
    )


def waiting(project):
    """Return the entries that are kept, oldest first."""
    return [json.loads(path.read_text()) for path in project.find("09_tracking/*/[0-9]*.json")]


def names_of(run):
    """Return the names of all that a run logged, less what differs between any two runs."""
    paths = []
    folders = [""]
    while folders:
        for found in mlflow.MlflowClient().list_artifacts(run.info.run_id, folders.pop()):
            (folders if found.is_dir else paths).append(found.path)
    return {
        "params": sorted(run.data.params),
        "metrics": sorted(name for name in run.data.metrics if not name.startswith("system/")),
        "tags": sorted(name for name in run.data.tags if name != "moe_compress.promised_id"),
        "inputs": sorted((each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs),
        "artifacts": sorted(path.partition("/")[2] for path in paths),
    }


@pytest.mark.usefixtures("one_figure")
def test_the_servers_story(project, team, caplog):
    said = []

    # All servers are there: tracked, registered by an address in the store, and consumed from there.
    result = prune(project, 8)
    said.append(result.output)
    assert result.exit_code == 0, result.output
    version = resolve("moe-medical", "candidate")
    assert (version.version, version.source.startswith(f"s3://{servers.BUCKET}/mlflow/")) == ("1", True)
    first = team.run_of(8)
    assert first.info.status == "FINISHED"
    assert first.data.metrics["peak_memory_bytes"] > 1e8
    assert first.data.metrics["seconds.medical.collect_statistics"] > 0
    assert first.data.metrics["system/cpu_utilization_percentage"] > 0
    logged = names_of(first)
    assert {"base_model", "medical.demonstrations", "medical.benchmark"} <= {name for name, _ in logged["inputs"]}
    assert "report.html" in logged["artifacts"]

    folder = mlflow.artifacts.download_artifacts("models:/moe-medical@candidate")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.n_routed_experts == 8
    assert AutoTokenizer.from_pretrained(folder)("fever cough")["input_ids"]

    # The same inputs are the same version, and upload nothing.
    before = team.weights()
    assert project.prune(*budget_of(8)).exit_code == 0
    assert resolve("moe-medical", "candidate").version == "1"
    assert team.weights() == before and len(before) == 1

    # The server goes in the middle and comes back before the end.
    with after_nodes(plan_experts=team.tracking.stop, draft_report=team.tracking.start):
        result = prune(project, 6)
    said.append(result.output)
    assert result.exit_code == 0, result.output
    assert "does not answer, so what is logged is kept in" in caplog.text
    assert (waiting(project), project.find("09_tracking/*/refused/*")) == ([], [])
    second = team.run_of(6)
    assert (second.info.status, names_of(second)) == ("FINISHED", logged)
    assert resolve("moe-medical", "candidate").version == "2"

    # It is away from the beginning to after the end: the compression is complete, and sent by one command.
    # A gate that fails there still fails the run.
    team.tracking.stop()
    failed = project.prune(*budget_of(6), "gates.size_reduced.at_most=0.1")
    said.append(failed.output)
    assert failed.exit_code == 1 and "must be at most 0.1" in failed.output
    assert not [entry for entry in waiting(project) if entry["kind"] == "registration"]
    result = prune(project, 5)
    said.append(result.output)
    assert result.exit_code == 3, result.output
    assert "Not registered yet, because the registry did not answer" in result.output
    assert "The checkpoint for moe-medical is complete and passed its gates" in result.output
    assert {entry["kind"] for entry in waiting(project)} == {"run", "request", "artifact", "registration"}
    away = CliRunner().invoke(tracking, ["sync"])
    said.append(away.output)
    assert away.exit_code == 3 and "kedro tracking sync sends them" in away.output
    team.tracking.start()
    synced = CliRunner().invoke(tracking, ["sync"])
    said.append(synced.output)
    assert (synced.exit_code, waiting(project)) == (0, []), synced.output
    assert "Registered as moe-medical version 3 (alias candidate)." in synced.output
    third = team.run_of(5)
    assert (third.info.status, names_of(third)) == ("FINISHED", logged)
    assert third.info.start_time > second.info.end_time
    assert team.run_of(6).info.status == "FAILED"
    version = mlflow.MlflowClient().get_model_version_by_alias("moe-medical", "candidate")
    assert (version.version, version.run_id) == ("3", third.info.run_id)
    assert "Nothing is kept." in CliRunner().invoke(tracking, ["sync"]).output

    # Its files are fetched to be hashed, and it is promoted.
    assert promote_model("moe-medical", None, "ann", "reviewed")["moved"] is True
    assert "fetching models:/moe-medical/3 (0.0 GB) from s3://" in caplog.text

    # What was planted in the environment is nowhere.
    left = {str(path): path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    left |= {**team.objects(), "the database": team.dump(), "what was said": "".join(said).encode()}
    left["the server's log"] = team.tracking.log.read_bytes()
    assert first.info.run_id.encode() in left["the database"]
    assert {place: found for place, text in left.items() if (found := re.findall(rb".{40}planted-.*", text))} == {}
