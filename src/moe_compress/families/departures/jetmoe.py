"""Its attention has experts too."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(refused="its attention layers have routed experts too, chosen by a router of their own")
