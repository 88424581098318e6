"""Filling templates."""

import jinja2
import pytest

from moe_compress.reporting.templating import fill_template


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        fill_template("model_card.md.j2")
