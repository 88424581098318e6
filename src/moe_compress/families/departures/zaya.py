"""Its router may choose no expert at all, and then hands out expert 0 with weight 0."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(refused="its router may choose to skip the experts, which is handed out as expert 0")
