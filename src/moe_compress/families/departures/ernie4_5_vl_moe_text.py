"""Text and image tokens have experts of their own."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(refused="text and image tokens have experts and routers of their own")
