"""A router that holds what is no number is refused in every dtype a router may have, and nothing else is read."""

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoint.conftest import make_map

from moe_compress.checkpoint import routers
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.routers import check_routers
from moe_compress.errors import CheckpointError
from moe_compress.types import MoELayout, TensorMap, TensorRole

SMALL = [
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]
ROUTER = TensorRole("expert_axis", 0, is_router=True)


def check(folder, router, role=ROUTER):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"gate": router}, folder / "model.safetensors")
    layout = MoELayout((0,), (4,), top_k=1)
    check_routers(read_index(folder), TensorMap(layout, {"gate": role}, ()))


def all_values(dtype):
    width = dtype.itemsize
    return torch.arange(256**width, dtype=torch.int32).to({1: torch.uint8, 2: torch.uint16}[width]).view(dtype)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_value_of_a_small_dtype(tmp_path, dtype):
    values = all_values(dtype)
    is_number = torch.isfinite(values.float())
    check(tmp_path, values[is_number].clone())  # all numbers at once
    wrong = values[~is_number]
    assert len(wrong)
    for value in wrong[:: max(len(wrong) // 9, 1)]:
        with pytest.raises(CheckpointError, match="NaN or infinity at row 2"):
            check(tmp_path, torch.cat([torch.ones(2).to(dtype), value[None]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_wide_dtypes(tmp_path, dtype, value):
    router = torch.full((4, 3), torch.finfo(dtype).max, dtype=dtype)
    check(tmp_path, -router)
    check(tmp_path, torch.zeros_like(router))
    router[3, 1] = value
    with pytest.raises(CheckpointError, match=r"'gate' in model\.safetensors holds NaN or infinity at row 3"):
        check(tmp_path, router)


def test_a_row_is_told_however_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(routers, "_BLOCK_BYTES", 16)
    router = torch.zeros(9, 5, dtype=torch.bfloat16)
    router[7, 4] = float("nan")
    with pytest.raises(CheckpointError, match="at row 7"):
        check(tmp_path, router)


def test_scales_that_are_powers_of_two_have_one_nan(tmp_path):
    values = torch.arange(255, dtype=torch.uint8)
    check(tmp_path, values.view(torch.float8_e8m0fnu))
    with pytest.raises(CheckpointError, match="at row 1"):
        check(tmp_path, torch.tensor([0, 255], dtype=torch.uint8).view(torch.float8_e8m0fnu))


def test_integers_are_always_numbers(tmp_path):
    check(tmp_path, torch.full((3,), -1, dtype=torch.int64))


def test_other_tensors_are_not_read(tmp_path):
    check(tmp_path, torch.full((3,), float("nan")), TensorRole("untouched"))


def test_a_router_that_was_cut_since(source):
    index = read_index(source)
    for file in source.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        check_routers(index, make_map())
