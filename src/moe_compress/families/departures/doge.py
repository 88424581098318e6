"""Doge retrieves single neurons by a product of two keys; they are not experts that one can drop one by one."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    refused="its experts are single neurons, found by a product of two keys; use a family with expert blocks"
)
