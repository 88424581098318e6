"""What is secret in the environment is in nothing that a run leaves or says, nor in what it would tell a server."""

import mlflow
import pytest
from tests.pipelines.conftest import forget_the_experiment

SECRETS = {
    "AWS_ACCESS_KEY_ID": "planted-key-id",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "HF_TOKEN": "planted-hf-token",
    "MLFLOW_TRACKING_TOKEN": "planted-token",
    "DATABASE_URL": "postgresql://someone:planted-url@database/x",
}


@pytest.mark.parametrize("server", ["http://ann:planted-password@127.0.0.1:9", None])
def test_secrets_of_the_environment_are_in_no_output(project, monkeypatch, caplog, capfd, server):
    with monkeypatch.context() as patch:
        forget_the_experiment(patch)
        for name, value in {**SECRETS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
            patch.setenv(name, value)
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, "")  # so that what the run sets is taken away again
        if server:
            patch.setenv("MLFLOW_TRACKING_URI", server)
        result = project.prune("evaluate.limit=8", "evaluate.prompts=2", "evaluate.tasks=[medical]")
        mlflow.set_tracking_uri(None)
    assert result.exit_code == (3 if server else 0), result.output
    said = "".join([result.output, caplog.text, *capfd.readouterr()])
    files = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    told = b"".join(
        content for path, content in files.items() if "09_tracking" in path.parts or path.suffix == ".db"
    )
    assert b"select.budget.experts_per_layer" in told
    assert [str(path) for path, content in files.items() if b"planted-" in content] == []
    assert "planted-" not in said and "Completed node" in said
