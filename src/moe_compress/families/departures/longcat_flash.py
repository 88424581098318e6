"""Some of its experts are identities, which no file holds."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    refused="some experts its router chooses from do nothing and have no weights, so they cannot be counted as others"
)
