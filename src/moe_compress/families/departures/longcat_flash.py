"""Some of its experts are identities, which no file holds."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(refused="its router also chooses from experts that do nothing and have no weights")
