"""The committed page says what is derived now."""

from tests.families.conftest import REFUSED
from tests.families_table import PAGE, describe, format_page
from tests.tiny_configs import FAMILIES


def test_the_page_of_families_is_what_is_derived_now(tiny):
    rows = [describe(family, tiny(family).folder) for family in sorted(FAMILIES)]
    assert {row.family for row in rows if row.refused} == set(REFUSED)
    assert PAGE.read_text() == format_page(rows), "write it anew: python -m tests.families_table"
