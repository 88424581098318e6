"""Begin to distill a tiny model on a device that only pretends to be one, and print its loss before training."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from tests.pretended_device import DEVICE
from tests.tuning.conftest import make_settings, run

from moe_compress.tuning import tune
from moe_compress.tuning.texts import collate
from moe_compress.tuning.train import measure_loss
from moe_compress.types import TuningCourse

torch.privateuseone.get_amp_supported_dtype = lambda: [torch.bfloat16]


def measure(objective, texts, settings, folder):
    """Do what training does before its first step: transformers' Trainer knows no device of this kind."""
    objective.to(settings.device)
    loss = measure_loss(objective, [collate(texts.validation)])
    print(json.dumps({"device": str(settings.device), "loss": loss}), flush=True)
    return TuningCourse(loss, 0, ())


def main(folder):
    """Print one line of JSON for the host, and one for the device."""
    tune.train = measure
    for device in ("cpu", str(DEVICE)):
        settings = make_settings(objective="distill").model_copy(update={"device": device})
        with tempfile.TemporaryDirectory() as work:
            run(Path(folder), Path(work), settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
