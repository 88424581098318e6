"""The project and the person who types commands, for the commands that the pages show."""

from tests.operations.conftest import operator  # noqa: F401
from tests.pipelines.conftest import inputs, project, pytest_collection_modifyitems  # noqa: F401
from tests.registry.conftest import empty_database  # noqa: F401
