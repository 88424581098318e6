"""Large ones compute their experts in a smaller space and project the sum back."""

from moe_compress.families.departures import Departure

DEPARTURE = Departure(passages=(("mixer.fc2_latent_proj", "linear"),))
