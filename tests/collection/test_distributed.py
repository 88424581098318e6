"""Ranks and shards: counts to the bit, sums within 1e-9 of one process."""

from __future__ import annotations

import multiprocessing
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.collection.conftest import layout_of, load_plain, make_batch, make_sums, run_resident
from tests.collection.ranked import collect_rank

from moe_compress.collection.collect import CollectSettings
from moe_compress.collection.distributed import (
    add_shards,
    parse_shard,
    refuse_empty_shards,
    refuse_what_does_not_add,
    share_of,
    take_share,
)
from moe_compress.errors import ParameterError, StatisticsError


def many_batches():
    return {
        "one": tuple(make_batch(seed, 2, 12 - seed, 2 * seed) for seed in range(5)),
        "two": (make_batch(9, 2, 7, 0),),  # fewer than ranks: some have none
    }


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.collection.ranked", "transformers.models.qwen3_moe.modeling_qwen3_moe"])
    return context


@pytest.fixture(scope="module")
def whole(checkpoint):
    model = load_plain("qwen3_moe", checkpoint("qwen3_moe"), torch.float32)
    sums = run_resident(model, layout_of(model), many_batches())
    return {name: own.as_statistics(name, {"shard": "1/1"}) for name, own in sums.items()}


def assert_close(found, expected):
    assert found.num_tokens == expected.num_tokens
    assert found.parts.num_demonstrations == expected.parts.num_demonstrations
    assert (found["count"] == expected["count"]).all()
    assert (found.parts.sums["count"] == expected.parts.sums["count"]).all()
    kinds = (found.sums, expected.sums), (found.maxima, expected.maxima), (found.parts.sums, expected.parts.sums)
    for ours, theirs in kinds:
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(values), rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_add_up_to_one_process(processes, checkpoint, whole, tmp_path, num_ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        processes.Process(
            target=collect_rank, args=(checkpoint("qwen3_moe"), many_batches(), tmp_path, rank, num_ranks, port)
        )
        for rank in range(num_ranks)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(num_ranks)]
    for name, expected in whole.items():
        sums = make_sums(expected.layout, many_batches())[name]
        sums.restore({key.removeprefix(f"{name}/"): v for key, v in found[0].items() if key.startswith(name)})
        assert_close(sums.as_statistics(name, {}), expected)
    for other in found[1:]:
        assert all(torch.equal(other[key], value) for key, value in found[0].items())


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_a_shard_has_the_same_batches_however_many_ranks_collect_it(num_ranks):
    batches = many_batches()
    for shard in ("1/2", "2/2"):
        alone = share_of(batches, shard, 0, 1)
        for name, expected in alone.items():
            found = [share_of(batches, shard, rank, num_ranks)[name] for rank in range(num_ranks)]
            assert sorted(map(id, sum(found, ()))) == sorted(map(id, expected))


def shards_of(checkpoint, count):
    model = load_plain("qwen3_moe", checkpoint("qwen3_moe"), torch.float32)
    layout, batches = layout_of(model), many_batches()
    shards = []
    for place in range(count):
        one = {"one": batches["one"]}
        sums = run_resident(model, layout, take_share(one, place, count), one)
        shards.append(sums["one"].as_statistics("one", {"shard": f"{place + 1}/{count}", "base_id": "tiny"}))
    return shards


@pytest.mark.parametrize("count", [1, 3, 5])
def test_shards_add_up_to_one_process(checkpoint, whole, count):
    found = add_shards(shards_of(checkpoint, count)[::-1])
    assert_close(found, whole["one"])
    assert found.provenance == {"base_id": "tiny"}


def test_a_missing_shard_is_named(checkpoint):
    first, _, third = shards_of(checkpoint, 3)
    with pytest.raises(StatisticsError, match=r"1 of 3 shards are missing.*collect\.shard=2/3$"):
        add_shards([first, third])
    with pytest.raises(StatisticsError, match=r"2 of 3 shards are missing.*collect\.shard=1/3 and so on"):
        add_shards([third])


def test_shards_of_different_divisions_do_not_add(checkpoint):
    first, *_ = shards_of(checkpoint, 3)
    with pytest.raises(StatisticsError, match=r"the shards 1/2, 1/3 are not of one division"):
        add_shards([first, replace(first, provenance={"shard": "1/2"})])
    with pytest.raises(StatisticsError, match="are none at all"):
        add_shards([])


def test_more_shards_than_batches_are_refused():
    refuse_empty_shards({"one": many_batches()["one"]}, "1/5")
    with pytest.raises(ParameterError, match=r"collect\.shard is 1/3, but .* 'two' are only 1 batches"):
        refuse_empty_shards(many_batches(), "1/3")


def test_shares_are_all_batches_once():
    domains = many_batches()
    shares = [take_share(domains, place, 4) for place in range(4)]
    for name, batches in domains.items():
        dealt = [batch for share in shares for batch in share[name]]
        assert sorted(map(id, dealt)) == sorted(map(id, batches))


def test_shards_are_counted_from_one():
    assert parse_shard(CollectSettings().shard) == (0, 1)
    assert parse_shard("2/8") == (1, 8)
    with pytest.raises(ParameterError, match=r"collect\.shard is 3/2; give i/n with i from 1 to n"):
        parse_shard("3/2")


def test_what_does_not_add_is_not_divided():
    refuse_what_does_not_add({"one": ("elimination",)}, 1)
    refuse_what_does_not_add({"one": ("pooled_gram",)}, 4)
    with pytest.raises(ParameterError, match="'elimination_rank' of domain 'two' is asked for from 4 processes"):
        refuse_what_does_not_add({"one": ("embedding",), "two": ("elimination",)}, 4)
