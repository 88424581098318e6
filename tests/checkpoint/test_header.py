"""Headers are read as the safetensors library reads them, and every lie in one is refused."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from tests.checkpoint.conftest import make_tensors, save

from moe_compress.checkpoint.header import DTYPE_BITS, read_header, read_json, write_header
from moe_compress.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(folder, header, data=b"\0" * 8):
    """Write a file with this header (bytes, or an object to encode) and data; return its path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refuse(path, words):
    with pytest.raises(CheckpointError, match=words):
        read_header(path, path.name)


def test_a_saved_file_is_read_to_the_byte(tmp_path):
    path = save(tmp_path / "c", shards=1) / "model.safetensors"
    content = path.read_bytes()
    found = read_header(path, "link-name")
    assert found.keys() == make_tensors().keys()
    for name, values in make_tensors().items():
        info = found[name]
        assert (info.name, info.file, info.shape, info.num_bytes) == (
            name,
            "link-name",
            values.shape,
            values.nbytes,
        )
        assert info.dtype == {"float32": "F32", "float16": "F16"}[values.dtype.name]
        assert content[info.start : info.start + info.num_bytes] == values.tobytes()


def test_a_written_header_is_what_the_library_reads(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = write_header([("ä.weight", "F32", (2, 3), 24), ("empty", "BF16", (0, 7), 0)])
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + values.tobytes())
    with safe_open(path, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(opened.get_tensor("ä.weight"), values)
        assert opened.get_slice("empty").get_shape() == [0, 7]
    assert read_header(path, "x")["empty"].num_bytes == 0


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "I64", "U8", "BOOL", "F4", "F8_E8M0"])
def test_sizes_of_dtypes_agree_with_the_library(tmp_path, dtype):
    num_bytes = DTYPE_BITS[dtype] * 16 // 8
    path = write(
        tmp_path, {"a": {"dtype": dtype, "shape": [16], "data_offsets": [0, num_bytes]}}, b"\0" * num_bytes
    )
    assert read_header(path, "x")["a"].num_bytes == num_bytes
    with safe_open(path, framework="np") as opened:
        assert opened.get_slice("a").get_shape() == [16]


@pytest.mark.parametrize("size", [0, 5, 8, 9])
def test_a_file_shorter_than_a_header(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x02" + b"\0" * (size - 1) if size else b"")
    refuse(path, f"x.safetensors has {size} bytes and claims")


def test_a_header_larger_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    refuse(path, "claims a header of 4611686018427387904")


def test_a_truncated_file(tmp_path):
    path = save(tmp_path / "c", shards=1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuse(path, "still downloading")


def test_bytes_no_tensor_claims(tmp_path):
    refuse(write(tmp_path, {"a": ENTRY}, b"\0" * 9), r"has \d+ bytes, its tensors need")


def test_overlapping_tensors(tmp_path):
    refuse(write(tmp_path, {"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, b"\0" * 12), "neither overlap")


def test_a_hole_between_tensors(tmp_path):
    refuse(write(tmp_path, {"a": ENTRY, "b": ENTRY | {"data_offsets": [9, 17]}}, b"\0" * 17), "nor leave holes")


def test_shape_and_bytes_that_differ(tmp_path):
    refuse(
        write(tmp_path, {"a": ENTRY | {"shape": [3]}}), r"tensor 'a' in x.safetensors is F32 \[3\] but has 8 bytes"
    )


def test_the_same_name_twice(tmp_path):
    entry = json.dumps(ENTRY)
    refuse(write(tmp_path, f'{{"a": {entry}, "a": {entry}}}'.encode()), "holds the key 'a' twice")


@pytest.mark.parametrize("header", [b"[]", b'"abc"', b"12"])
def test_a_header_that_is_no_object(tmp_path, header):
    refuse(write(tmp_path, header), "not a JSON object")


@pytest.mark.parametrize("header", [b"{]", b'{"a": \xff}', b"[" * 99_999])
def test_a_header_that_is_no_json(tmp_path, header):
    refuse(write(tmp_path, header), "is not valid JSON")


@pytest.mark.parametrize(
    "entry",
    [[], "F32", {"dtype": "F32"}, ENTRY | {"dtype": "F99"}, ENTRY | {"dtype": ["F32"]}, ENTRY | {"more": 1}],
)
def test_an_entry_that_describes_no_tensor(tmp_path, entry):
    refuse(write(tmp_path, {"a": entry}), "needs a known dtype, a shape and data_offsets")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1]},
        {"shape": [2.0]},
        {"shape": [True]},
        {"shape": 2},
        {"data_offsets": [0]},
        {"data_offsets": "08"},
        {"shape": [1 << 70, 0]},
        {"shape": [1] * 65},
        {"shape": [-1, -2]},
        {"data_offsets": [0, True]},
    ],
)
def test_sizes_that_are_no_sizes(tmp_path, changes):
    refuse(write(tmp_path, {"a": ENTRY | changes}), "which are not sizes")


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\x85b", "x" * 513])
def test_a_name_no_tensor_has(tmp_path, name):
    path = write(tmp_path, {name: ENTRY})
    with pytest.raises(CheckpointError, match="a name has 1 to 512 printable characters") as caught:
        read_header(path, path.name)
    assert str(caught.value).isprintable()


def test_half_a_character(tmp_path):
    refuse(write(tmp_path, b'{"a\\ud800": ' + json.dumps(ENTRY).encode() + b"}"), "surrogates not allowed")
    whole = b'{"\\ud83d\\ude00": ' + json.dumps(ENTRY).encode() + b"}"
    assert read_header(write(tmp_path, whole), "x").keys() == {"\N{GRINNING FACE}"}


@pytest.mark.parametrize("metadata", [[], None, "pt", {"format": 1}, {"format": {"a": "b"}}])
def test_metadata_that_maps_no_strings(tmp_path, metadata):
    refuse(write(tmp_path, {"a": ENTRY, "__metadata__": metadata}), "which maps no strings to strings")


def test_offsets_that_run_backwards(tmp_path):
    refuse(write(tmp_path, {"a": ENTRY | {"data_offsets": [8, 0]}}), r"is F32 \[2\] but has -8 bytes")


def test_offsets_behind_the_end(tmp_path):
    refuse(write(tmp_path, {"a": ENTRY | {"data_offsets": [1 << 40, (1 << 40) + 8]}}), "starts at byte 10995116")


def test_a_number_too_long_to_read(tmp_path):
    text = json.dumps({"a": ENTRY}).replace("8]", "8" * 5000 + "]").encode()
    refuse(write(tmp_path, text), "is not valid JSON")


def test_an_entry_nested_deep_is_told_briefly(tmp_path):
    text = b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}"
    refuse(write(tmp_path, text), r"is described by \[+\.\.\.\]+, which")


def test_a_header_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(200_000_000)  # sparse
    refuse(path, "claims a header of 100000001")


def test_a_json_file_over_the_limit_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as stream:
        stream.truncate(100_000_001)
    with pytest.raises(CheckpointError, match="is larger than 100000000 bytes"):
        read_json(tmp_path / "x.json")
