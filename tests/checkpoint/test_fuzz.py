"""Whatever is in a checkpoint's files: one sentence or a whole checkpoint, soon, and nothing anywhere else.

`FUZZ_CASES=1000000 pytest tests/checkpoint/test_fuzz.py` looks longer; case n is the same whenever it runs.
"""

import copy
import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from benchmarks.synthetic import lay_out, plan_half, qwen3_config, qwen3_tensors
from tests import tiny_families
from tests.checkpoint.conftest import make_map, make_plan, save

from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.routers import check_routers
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import CheckpointError, PlanError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.families.verify import verify_checkpoint
from moe_compress.types import ExpertGroup

NUM_CASES = int(os.environ.get("FUZZ_CASES", "10000"))
NUM_CONFIGS = NUM_CASES // 50
SECONDS = 5
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
PLANS = (make_plan(0, 3), make_plan(ExpertGroup((0, 2), (0.5, 0.5)), 1))
NUMBERS = (-1, 0, 1, 7, 2**31, 2**32 - 1, 2**53, 2**63, 2**64, 10**30, 10**400, 1.5, float("nan"), float("inf"))
NAMES = (
    "",
    ".",
    "..",
    "../outside.safetensors",
    "/outside.safetensors",
    "a\0b.safetensors",
    "a\nb",
    "\ud800.safetensors",
    "x" * 300 + ".safetensors",
    "x" * 70_000,
    "__metadata__",
    "embed.weight",
    FIRST,
    SECOND,
    "config.json",
)
DTYPES = ("F64", "F16", "BF16", "F4", "F8_E4M3", "BOOL", "F99", "f32")
DEEP = "[" * 300 + "]" * 300
TOO_DEEP = "[" * 100_000 + "]" * 100_000


def pick_value(random):
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(NAMES)
    if kind == 2:
        return random.choice(DTYPES)
    if kind == 3:
        return random.choice((None, True, False, [], {}, [0], {"a": "b"}, [2**40, 2**40], json.loads(DEEP)))
    return random.randrange(-5, 200)


def change_json(value, random):
    """Return a JSON value with something changed, somewhere inside."""
    value = copy.deepcopy(value)
    place = value
    while isinstance(place, dict | list) and place:
        key = random.choice(list(place)) if isinstance(place, dict) else random.randrange(len(place))
        if isinstance(place[key], dict | list) and place[key] and random.random() < 0.85:
            place = place[key]
            continue
        change = random.randrange(5)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            place[random.choice(NAMES)] = place.pop(key)
        elif change == 2 and type(place[key]) is int:
            place[key] += random.choice((-8, -4, -1, 1, 4, 8, 1 << 40))
        else:
            place[key] = pick_value(random)
        break
    return value


def as_text(value, random):
    text = json.dumps(value)
    if random.random() < 0.02:
        text = text.replace("{", '{"embed.weight": 1, "embed.weight": 1, ', 1)  # a key twice
    if random.random() < 0.02:
        text = text.replace("1", random.choice((DEEP, TOO_DEEP, "1e999", "0x1", "1" * 5000)), 1)
    return text.encode()


def change_bytes(content, random):
    """Return bytes with some flipped, cut, doubled or put in."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(content) + 1)
        other = random.randrange(len(content) + 1)
        kind = random.randrange(6)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            content[place:place] = random.randbytes(random.choice((1, 8, 64)))
        elif kind == 2:
            content[place : place + random.randrange(1, 40)] = content[other : other + random.randrange(40)]
        elif kind == 3 and content:
            content[:8] = random.choice((0, 1, 2, 2**31, 2**62, 2**64 - 1, len(content))).to_bytes(8, "little")
        elif content:
            content[place % len(content)] ^= 1 << random.randrange(8)
    return bytes(content)


def change_shard(content, random):
    """Return a safetensors file with a changed header, the header's length right or the bytes arbitrary."""
    if random.random() < 0.35:
        length = int.from_bytes(content[:8], "little")
        head = change_bytes(content[: 8 + length], random)
        return head + content[8 + length :]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.3:
        return restate(header, random)
    for _ in range(random.choice((1, 1, 2))):
        header = change_json(header, random)
    if random.random() < 0.3 and len(header) > 1:  # two tensors trade shapes or places, which may still be whole
        first, second = random.sample(sorted(header), 2)
        header[first], header[second] = header[second], header[first]
    text = as_text(header, random)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def restate(header, random):
    """Return a file whose every claim is true, with tensors of other shapes and dtypes than a reader expects."""
    header.pop("__metadata__")
    widths = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F64": 8}
    for name in random.sample(sorted(header), random.choice((1, 1, 2))):
        shape = [size for size in header[name]["shape"] if random.random() < 0.8]
        random.shuffle(shape)
        shape += random.choice(([], [], [1], [0], [2, 2], [1] * 64))
        header[name] |= {"dtype": random.choice(sorted(widths)), "shape": shape}
    end = 0
    for entry in header.values():
        num_bytes = math.prod(entry["shape"]) * widths[entry["dtype"]]
        entry["data_offsets"] = [end, end + num_bytes]
        end += num_bytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + random.randbytes(end)


def change_text(content, random):
    if random.random() < 0.3:
        return change_bytes(content, random)
    return as_text(change_json(json.loads(content), random), random)


@contextmanager
def time_limit(case):
    def fail(*_):
        pytest.fail(f"case {case} takes longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def put(path, content):
    """Make a file new: to cut an old one short and close it makes some file systems wait for the disk."""
    path.unlink()
    path.write_bytes(content)


def list_tree(folder):
    return sorted(
        (entry.path, entry.stat(follow_symlinks=False).st_size)
        for place in (folder, folder / "source")
        for entry in os.scandir(place)
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with nothing but sources and what a rewrite makes, in memory where it can be, and never flushed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        (Path(name) / "outside.safetensors").write_bytes(b"secret")
        yield Path(name)


def survive(case, root, source, rewrite_all):
    """Run one case and return whether it was accepted; its outcome lies at `new` alone."""
    before = list_tree(root)
    with time_limit(case):
        try:
            rewrite_all(source, root / "new")
        except (CheckpointError, PlanError, UnsupportedModelError) as error:
            assert str(error).isprintable(), case  # one line, that a terminal shows
            assert len(str(error)) < 2000, case
            assert not (root / "new").exists(), case
            accepted = False
        else:
            accepted = True
            read_index(root / "new")
            shutil.rmtree(root / "new")
    assert list_tree(root) == before, case
    return accepted


def test_headers_and_indices(place):
    source = save(place / "source")
    originals = {name: (source / name).read_bytes() for name in (FIRST, SECOND, INDEX)}
    accepted = 0
    for case in range(NUM_CASES):
        random = Random(case)
        name = random.choice((FIRST, FIRST, SECOND, INDEX))
        change = change_text if name == INDEX else change_shard
        put(source / name, change(originals[name], random))

        def rewrite_all(source, new, plan=PLANS[case % 2]):
            index = read_index(source)
            tensor_map = make_map()
            planned = plan_rewrite(index, tensor_map, plan, max_shard_bytes=200)
            check_routers(index, tensor_map)
            write_checkpoint(planned, new)

        accepted += survive(case, place, source, rewrite_all)
        put(source / name, originals[name])
    assert accepted > NUM_CASES // 100  # the mutations reach the writer too


def test_configs(place):
    config = qwen3_config(num_layers=1, num_experts=4) | {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32,
    }
    lay_out(place / "source", config, list(qwen3_tensors(config)), 2, is_sparse=True)
    assert change_configs(place, NUM_CONFIGS) > NUM_CONFIGS // 100


def test_configs_in_configs(place):
    """A tower of vision beside the language model is built too, and counts its own layers."""
    tiny_families.save("glm4v_moe", place / "source")
    change_configs(place, NUM_CONFIGS // 10)


def change_configs(place, num_cases):
    """Run cases that change `config.json`, and return how many were accepted."""
    source = place / "source"
    content = (source / "config.json").read_bytes()
    accepted = 0
    for case in range(num_cases):
        put(source / "config.json", change_text(content, Random(case)))

        def rewrite_all(source, new):
            index = read_index(source)
            tensor_map = derive_tensor_map(index.config, index.shapes)
            check_routers(index, tensor_map)
            planned = plan_rewrite(index, tensor_map, plan_half(tensor_map.layout))
            verify_checkpoint(planned.config, planned.shapes)
            write_checkpoint(planned, new)

        accepted += survive(case, place, source, rewrite_all)
    return accepted
