"""A project with a run behind it, for the commands that the pages show."""

from tests.pipelines.conftest import pruned, pytest_collection_modifyitems  # noqa: F401
