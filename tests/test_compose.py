"""The team's compose file: nothing secret in it, nothing floating, and every service waits for a healthy one."""

import re
from pathlib import Path

import yaml

TEXT = (Path(__file__).parents[1] / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
TARGETS = {"mlflow": "mlflow", "compress": "cpu"}
"""Services whose image is built here, and the Dockerfile's stage, which says when they are healthy."""


def test_every_secret_is_asked_of_the_environment_and_has_no_default():
    asked = re.findall(r"\$\{(\w+)([^}]*)\}", TEXT)
    assert {name for name, _ in asked} == {"POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert all(rest.startswith(":?") for _, rest in asked)
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|KEY|BACKEND_STORE", name):
                assert "${" in value, f"{name} is written out"


def test_images_have_versions_and_ports_stay_on_this_machine():
    built = {name: service["build"] for name, service in SERVICES.items() if "build" in service}
    assert built == {name: {"context": ".", "target": target} for name, target in TARGETS.items()}
    images = [service["image"] for name, service in SERVICES.items() if name not in built]
    assert len(images) == 2
    assert all(re.search(r":[\w.-]*\d[\w.-]*$", image) and not image.endswith(":latest") for image in images)
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_services_wait_for_healthy_ones_and_keep_what_they_hold():
    for name, service in SERVICES.items():
        if name not in TARGETS:
            assert service["healthcheck"]["test"][0] == "CMD"
        assert ("profiles" in service) != (service.get("restart") == "unless-stopped")
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES and wait == {"condition": "service_healthy"}
    mounted = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())}
    assert mounted == set(COMPOSE["volumes"])


def test_the_server_starts_as_the_docs_say():
    command = SERVICES["mlflow"]["command"][-1]
    assert "--no-serve-artifacts" in command and "--default-artifact-root s3://models/mlflow" in command
    address = SERVICES["compress"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {address, "localhost:5000", "127.0.0.1:5000"} <= set(allowed)  # others are refused by MLflow
