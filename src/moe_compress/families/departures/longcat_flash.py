"""LongCat-Flash has experts without weights, for which transformers 5.23 keeps matrices all the same."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(
    refused="transformers expects gate and up matrices for experts that have none, so it loads no published "
    "checkpoint; wait for a version of transformers that does"
)
