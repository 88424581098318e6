"""Collect from tiny models on a device that only pretends to be one, and print how that differs from the host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tests import pretended_device, tiny_families
from tests.collection.conftest import layout_of, load_plain, make_domains, make_sums, read_files, run_resident

from moe_compress import methods
from moe_compress.collection import staging
from moe_compress.collection.dequantise import dequantise
from moe_compress.collection.progress import Progress
from moe_compress.collection.resident import collect_resident
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import StreamedModel, collect_streamed
from moe_compress.collection.sums import start_sums
from moe_compress.types import Encoding

staging._PIECE = 1000  # bytes, so that these small tensors too come in several pieces


def compare(family, folder):
    """Return what differs from a resident collection on the host, and where the host waited, both ways."""
    model, domains = load_plain(family, folder, torch.float32), make_domains()
    model.set_attn_implementation("eager")  # any other has a kernel of its own on the host
    layout = layout_of(model)
    expected = {name: sums.take() for name, sums in run_resident(model, layout, domains).items()}

    pretended_device.send(model)
    pretended_device.waits.clear()
    resident = run_resident(model, layout, domains)
    waits = dict(pretended_device.waits)

    streamed = make_sums(layout, domains)
    streaming = StreamedModel(read_files(folder), torch.float32, pretended_device.DEVICE)
    streaming.model.set_attn_implementation("eager")
    collect_streamed(streaming, domains, streamed, ResumePoint(None, "", keep=True), Progress(1, 1))
    different = {
        way: [
            f"{name}/{key}" for name, own in expected.items() for key in own if not _is_same(own, found[name], key)
        ]
        for way, found in {"resident": resident, "streamed": streamed}.items()
    }
    return {"layers": len(layout.layers), "different": different, "waits": waits}


def _is_same(expected, found, key):
    return torch.equal(expected[key], found.state()[key].cpu())


def compare_elimination(family):
    """Return what of the sums that take a layer's experts apart differs from the host's."""
    model, domains = tiny_families.build(family, experts_implementation="grouped_mm"), make_domains()
    layout, reduction = layout_of(model), methods.reduction("reconstruct", 0)

    def collect():
        asked = ("elimination", "weight_gram")
        sums = {name: start_sums(layout, own, asked, 20, reduction) for name, own in domains.items()}
        collect_resident(model, domains, sums, Progress(1, 1))
        return sums

    expected = {name: sums.take() for name, sums in collect().items()}
    pretended_device.send(model)
    found = collect()
    return [f"{name}/{key}" for name, own in expected.items() for key in own if not _is_same(own, found[name], key)]


def compare_decoding():
    """Return the kinds of quantised weights that the device decodes otherwise than the host."""
    draw = torch.Generator().manual_seed(0)
    fp8 = torch.randn(12, 16, generator=draw).to(torch.float8_e4m3fn), torch.rand(2, 4, generator=draw)
    mxfp4 = (torch.randint(120, 200, shape, generator=draw, dtype=torch.uint8) for shape in ((6, 3, 16), (6, 3)))
    different = []
    for kind, block, parts in (("fp8", (8, 5), fp8), ("mxfp4", (32, 1), tuple(mxfp4))):
        encoding = Encoding(kind, "codes", "scales", block)
        expected = dequantise(encoding, *parts, torch.bfloat16)
        found = dequantise(encoding, *(part.to(pretended_device.DEVICE) for part in parts), torch.bfloat16)
        if not torch.equal(found.cpu(), expected):
            different.append(kind)
    return different


def main():
    """Print one line of JSON for each family named, one of eliminating experts, and one of decoding weights."""
    print(json.dumps({"family": "elimination", "different": compare_elimination("deepseek_v3")}))
    print(json.dumps({"family": "decoding", "different": compare_decoding()}))
    for family in sys.argv[1:]:
        with TemporaryDirectory() as folder:
            tiny_families.save(family, folder)
            print(json.dumps({"family": family} | compare(family, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
