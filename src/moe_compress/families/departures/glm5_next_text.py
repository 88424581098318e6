"""Several residual streams, as in DeepSeek-V4."""

from moe_compress.families.departures import Departure
from moe_compress.families.departures.deepseek_v4 import mix_streams

DEPARTURE = Departure(streams=("ffn_hc", mix_streams))
