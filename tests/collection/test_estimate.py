"""What a collection takes is said before it starts, and what cannot fit is refused with numbers."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from tests import tiny_families
from tests.collection.conftest import CPU, layout_of, load_plain, make_domains, read_files, run_streamed
from tests.pipelines.conftest import make_tokenizer

from moe_compress.collection import estimate as planner
from moe_compress.collection.collect import CollectSettings, collect, find_device, find_dtype
from moe_compress.collection.estimate import (
    Estimate,
    choose_mode,
    estimate,
    free_device_bytes,
    free_host_bytes,
    refuse_what_cannot_fit,
)
from moe_compress.collection.progress import LayerRecord, Progress
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import StreamedModel
from moe_compress.errors import ParameterError, ResourceError
from moe_compress.types import Demonstrations

SMALL = Estimate("streamed", 10, 100, 100, 100, 100, 1.0)
HUGE = 10**15


@pytest.fixture
def streamed(checkpoint):
    return StreamedModel(read_files(checkpoint("mixtral")), torch.float32, CPU)


@pytest.fixture(scope="module")
def readable(tmp_path_factory):
    """A tiny model with a tokenizer, whose layout is that of `layout`."""
    folder = tmp_path_factory.mktemp("readable")
    tokenizer = make_tokenizer()
    tiny_families.save("mixtral", folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return read_files(folder)


@pytest.fixture
def layout(checkpoint):
    return layout_of(load_plain("mixtral", checkpoint("mixtral"), torch.float32))


def test_estimates_count_tokens_bytes_and_layers(streamed, layout, tmp_path):
    domains = make_domains()
    resident = estimate("resident", streamed, domains, layout, None)
    found = estimate("streamed", streamed, domains, layout, tmp_path)
    assert found.num_tokens == resident.num_tokens == (9 + 6 + 6) + (12 + 9) + (7 + 4)
    size = sum(info.num_bytes for info in streamed.files.tensors.values())
    assert found.read_bytes == size
    layer = sum(v.numel() * 4 for v in streamed.model.model.layers[0].parameters())
    assert streamed.layer_bytes() == [layer] * 3
    assert resident.device_bytes - found.device_bytes == layer  # three layers against two
    assert found.disk_bytes == 2 * (3 * 9 + 2 * 12 + 2 * 7) * 16 * 4
    assert resident.disk_bytes == 0
    assert estimate("streamed", streamed, domains, layout, None).host_bytes == found.disk_bytes
    assert found.seconds > 0
    assert "tokens" in str(found) and "very roughly" in str(found)


def test_what_is_loaded_to_another_device_passes_the_host_file_by_file(checkpoint, layout, monkeypatch):
    monkeypatch.setattr(planner, "_measure_flops", lambda *_: 1.0)  # of a device that computes nothing
    files, domains = read_files(checkpoint("mixtral")), make_domains()
    here, there = (StreamedModel(files, torch.float32, torch.device(name)) for name in ("cpu", "meta"))
    largest = max(path.stat().st_size for path in files.folder.glob("*.safetensors"))
    assert len(list(files.folder.glob("*.safetensors"))) > 1
    assert estimate("resident", here, domains, layout, None).host_bytes == 0
    assert estimate("resident", there, domains, layout, None).host_bytes == largest
    assert estimate("streamed", there, domains, layout, Path()).host_bytes == 0


SHARING = {
    "num_kv_shared_layers": 3,
    "num_hidden_layers": 6,
    "layer_types": ["full_attention", "sliding_attention"] * 3,
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:transformers")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {}),
        ("gemma4_text", SHARING | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64}),
        ("mistral_large4", {"kv_source_layers": [0, 1, 1]}),
        ("glm_moe_dsa", {}),
        ("deepseek_v4", {}),
    ],
)
def test_what_lies_between_layers_is_not_underestimated(tmp_path, family, changes):
    tiny_families.save(family, tmp_path / "model", **changes)
    files, domains, work = read_files(tmp_path / "model"), make_domains(), tmp_path / "work"
    sizes = []

    class Watch(Progress):
        def end_layer(self, num_bytes):
            with suppress(FileNotFoundError):  # another thread deletes the layer before
                sizes.extend(path.stat().st_size for path in work.glob("*/hidden-*"))

    layout = layout_of(load_plain(family, files.folder, torch.float32, "eager"))
    point = ResumePoint(work, "a" * 64, keep=True)
    _, streamed = run_streamed(files, layout, domains, experts="eager", point=point, progress=Watch(1, 1))
    expected = estimate("streamed", streamed, domains, layout, work)
    assert expected.between_bytes == expected.disk_bytes
    assert max(sizes) <= expected.between_bytes / 2 <= 2.5 * max(sizes)


def test_requested_statistics_are_part_of_the_estimate(streamed, layout):
    domains = make_domains()
    plain = estimate("streamed", streamed, domains, layout, None)
    asked = estimate("streamed", streamed, domains, layout, None, {"one": ("coactivation", "embedding")}, 16)
    experts, hidden = 8, 16
    coactivation, embedding = 8 * experts * experts, 8 * experts * (hidden + 1)
    assert asked.host_bytes - plain.host_bytes == 3 * (coactivation + embedding)
    assert asked.between_bytes == plain.between_bytes > 0
    assert asked.device_bytes > plain.device_bytes + coactivation + embedding


def test_auto_streams_what_does_not_fit_comfortably(streamed):
    files = streamed.files
    fits = Estimate("resident", 1, 1, 1, 0, 0, 1.0)
    assert choose_mode("auto", fits, CPU, files)[0] == "resident"
    barely = replace(fits, device_bytes=int(0.9 * free_device_bytes(CPU)))
    mode, why = choose_mode("auto", barely, CPU, files)
    assert mode == "streamed" and "GB free on cpu" in why
    through_the_host = replace(fits, host_bytes=HUGE)
    assert choose_mode("auto", through_the_host, CPU, files)[0] == "streamed"
    assert choose_mode("resident", barely, CPU, files)[0] == "resident"
    assert choose_mode("streamed", fits, CPU, files)[0] == "streamed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"device_bytes": HUGE},
            r"streamed collection needs about 1,000,000\.00 GB of device memory, but .* are free",
        ),
        ({"host_bytes": HUGE}, r"1,000,000\.00 GB of host memory"),
        (
            {"device_bytes": HUGE, "weight_bytes": HUGE // 2},
            r"two layers' weights alone are 500,000\.00 GB, so take",
        ),
        ({"disk_bytes": HUGE}, r"1,000,000\.00 GB of disk, but .* are free in .*lower data\.sample"),
        ({"mode": "resident", "device_bytes": HUGE}, r"resident collection .* or set collect\.mode to streamed"),
    ],
)
def test_what_cannot_fit_is_refused_with_numbers(tmp_path, changes, message):
    refuse_what_cannot_fit(SMALL, CPU, tmp_path)
    with pytest.raises(ResourceError, match=message):
        refuse_what_cannot_fit(replace(SMALL, **changes), CPU, tmp_path)


def test_what_an_interrupted_collection_has_on_disk_is_not_needed_again(tmp_path):
    needed = replace(SMALL, disk_bytes=HUGE)
    refuse_what_cannot_fit(needed, CPU, tmp_path, held_bytes=HUGE)
    with pytest.raises(ResourceError, match="of disk"):
        refuse_what_cannot_fit(needed, CPU, tmp_path, held_bytes=HUGE // 2)


def test_ranks_of_one_machine_share_its_memory_and_disk(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    refuse_what_cannot_fit(replace(SMALL, disk_bytes=free // 2), CPU, tmp_path)
    alone = free_host_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_host_bytes() < alone / 2
    with pytest.raises(ResourceError, match=r"of disk, but .* are free in .* for each rank"):
        refuse_what_cannot_fit(replace(SMALL, disk_bytes=free // 2), CPU, tmp_path)


def test_free_memory_is_below_what_the_machine_has():
    assert 0 < free_host_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


V2 = ("memory.max", "memory.current", "memory.stat", "")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_")


@pytest.mark.parametrize("version", [V2, V1], ids=["version 2", "version 1"])
def test_pages_of_files_that_were_read_are_free_in_a_container(tmp_path, version):
    limit, used, stat, prefix = version
    (tmp_path / stat).parent.mkdir(exist_ok=True)
    sizes = {
        "active_file": 10,
        "inactive_file": 700,
        "shmem": 50,
        "total_active_file": 20,
        "total_inactive_file": 800,
    }
    (tmp_path / stat).write_text("".join(f"{name} {size}\n" for name, size in sizes.items()))
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("900\n")
    cached = sizes[f"{prefix}active_file"] + sizes[f"{prefix}inactive_file"]
    assert free_host_bytes(tmp_path) == 1000 - 900 + cached
    (tmp_path / limit).write_text("max\n" if version is V2 else "9223372036854771712\n")
    assert free_host_bytes(tmp_path) > 1 << 20  # the machine's own


def test_the_dtype_is_the_checkpoints_own_or_the_one_named(checkpoint):
    files = read_files(checkpoint("mixtral"))
    assert find_dtype(files, "auto") == torch.float32
    assert find_dtype(files, "bfloat16") == torch.bfloat16
    without = {name: value for name, value in files.config.items() if name != "dtype"}
    assert find_dtype(replace(files, config=without), "auto") == torch.float32
    assert find_device("cpu") == CPU


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:3")
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParameterError, match=r"rank 3 on a machine with 2 GPUs.*start 2 there"):
        find_device("auto")


def test_both_modes_give_the_same_statistics_of_texts(readable, layout, tmp_path, caplog):
    texts = ("def add", "two three alpha", "heart")
    domains = {name: Demonstrations(name, ("a", "b", "c"), texts, "0") for name in ("code", "math")}
    requests = {"code": ("embedding", "max_norm"), "math": ()}
    found, records = {}, {"resident": [], "streamed": [], "auto": []}
    caplog.set_level(logging.INFO)
    for mode in ("resident", "streamed", "auto"):
        settings = CollectSettings(mode=mode, max_tokens=12, batch_size=2)
        lineage = {"code": {"base_id": "tiny"}, "math": {}}
        found[mode] = collect(
            readable, layout, domains, settings, lineage, requests, tmp_path, records[mode].append
        )
    for name in domains:
        for mode in ("streamed", "auto"):
            for key, values in found["resident"][name].sums.items():
                assert (found[mode][name].sums[key] == values).all()
    assert found["streamed"]["code"].provenance == {"base_id": "tiny"}
    layers = {mode: [(record.layer, record.num_layers) for record in told] for mode, told in records.items()}
    assert layers == {"resident": [(0, 1)], "streamed": [(0, 3), (1, 3), (2, 3)], "auto": [(0, 1)]}
    first, _, last = records["streamed"]
    assert last.seconds_left == 0 < first.seconds_left == 2 * first.seconds
    for each in chain(*records.values()):
        assert isinstance(each, LayerRecord) and each.tokens_per_second > 0
    assert "chosen because the whole model needs about" in caplog.text


def test_a_shard_of_texts_is_part_of_them_and_says_so(readable, layout):
    domains = {"code": Demonstrations("code", ("a", "b", "c"), ("add", "two", "heart"), "0")}
    settings = CollectSettings(mode="streamed", batch_size=1, max_tokens=4)
    whole = collect(readable, layout, domains, settings, {"code": {}})["code"]
    parts = [
        collect(readable, layout, domains, replace(settings, shard=f"{place}/2"), {"code": {}})["code"]
        for place in (1, 2)
    ]
    assert [part.provenance["shard"] for part in parts] == ["1/2", "2/2"]
    assert (parts[0].sums["count"] + parts[1].sums["count"] == whole.sums["count"]).all()
