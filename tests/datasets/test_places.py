"""Where a base model can be, as it is written."""

from pathlib import Path

import pytest

from moe_compress.datasets.places import HubPlace, RegisteredPlace, find_place
from moe_compress.errors import CheckpointError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data/model", Path("data/model")),
        ("file:///models/a%20b", Path("/models/a b")),
        ("hf://Qwen/Qwen3-30B-A3B@main", HubPlace("Qwen/Qwen3-30B-A3B", "main")),
        ("hf://gpt2", HubPlace("gpt2")),
        ("models:/base@champion", RegisteredPlace("base", alias="champion")),
        ("models:/base/3", RegisteredPlace("base", version="3")),
    ],
)
def test_places(text, place):
    assert find_place(text) == place


def test_a_hub_id_is_meant_instead_of_a_plain_folder_only():
    assert find_place("data/model", "org/base", "main") == HubPlace("org/base", "main")
    assert find_place("models:/base/3", "org/base") == RegisteredPlace("base", version="3")
    assert find_place("file:///models/a", "org/base") == Path("/models/a")


@pytest.mark.parametrize("text", ["models:/base", "models:/a/b/c", "s3://bucket/base", "hf://a/b/c", "hf://"])
def test_other_forms_are_refused(text):
    with pytest.raises(CheckpointError, match="is no place of a base model"):
        find_place(text)
