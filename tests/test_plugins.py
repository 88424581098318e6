from __future__ import annotations

import pytest

from moe_compress import methods
from moe_compress.errors import PluginError
from moe_compress.plugins import list_plugins, load_plugin


def test_the_folder_is_the_registry():
    names = list_plugins(methods)
    assert "easy_ep" in names and "_choose" not in names
    assert load_plugin(methods, "easy_ep").__name__ == "moe_compress.methods.easy_ep"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("easyep", "did you mean 'easy_ep'"),
        ("zzz", r"no 'zzz' in methods/; available: .*ean,"),
        ("_choose", "no '_choose'"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(PluginError, match=message):
        load_plugin(methods, name)
