"""Damaged safetensors files are refused by their header; whole ones read as their library says."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stages.errors import InputError
from stages.models.headers import read_header

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.int64),
    "none": np.zeros((0, 5), np.float16),
    "scalar": np.array(1.5, np.float64),
}
DATA = save(TENSORS, metadata={"format": "pt"})


def file_with(header: object, buffer: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + buffer


def entry(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_whole_file_reads_as_its_library_says(tmp_path):
    """Names, shapes, types and sizes are those that the safetensors library wrote."""
    file = tmp_path / "f.safetensors"
    file.write_bytes(DATA)
    found = read_header(file)
    assert {name: (item.shape, item.size_bytes) for name, item in found.items()} == {
        name: (tensor.shape, tensor.nbytes) for name, tensor in TENSORS.items()
    }
    assert [found[name].dtype for name in sorted(found)] == ["F32", "I64", "F16", "F64"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (DATA[:5], "cut short"),
        (DATA[:60], "cut short"),
        (DATA[:-1], "header says"),
        (DATA + b"x", "header says"),
        (struct.pack("<Q", 1 << 62) + DATA[8:], "cut short"),
        (file_with(b"[1, 2]"), "damaged"),
        (file_with(b"{" * 50_000), "damaged"),
        (file_with(b"\xff\xfe"), "damaged"),
        (file_with({"a": entry(0, 4, [5])}, b"1234"), "disagrees with its shape"),
        (file_with({"a": entry(0, 4, [-2, -2])}, b"1234"), "no size"),
        (file_with({"a": entry(-4, 0, [4])}, b"1234"), "no size"),
        (file_with({"a": entry(0, 4, [True, 4])}, b"1234"), "no size"),
        (file_with({"a": entry(0, 4, [4], "F99")}, b"1234"), "F99"),
        (file_with({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, b"123456"), "overlaps"),
        (file_with({"a": entry(0, 2, [2]), "b": entry(3, 4, [1])}, b"1234"), "gap"),
        (file_with({"a": entry(0, 1 << 40, [1 << 40])}, b"1234"), "header says"),
        (
            file_with(
                b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
                b"1",
            ),
            "twice",
        ),
    ],
)
def test_damage_is_refused_by_name(tmp_path, data, words):
    """Each kind of damage gives one error that names the file."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        read_header(file)
    assert caught.value.where == str(file)


def test_a_missing_file_is_an_input_error(tmp_path):
    """A path without a file is reported, not raised raw."""
    with pytest.raises(InputError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(DATA) - 1), value=st.integers(0, 255))
def test_what_we_accept_the_library_accepts_too(tmp_path, position, value):
    """After one changed byte: an InputError, or a file that safetensors reads to equal shapes."""
    data = bytearray(DATA)
    data[position] = value
    file = tmp_path / "mutant.safetensors"
    file.write_bytes(data)
    try:
        found = read_header(file)
    except InputError:
        return
    try:
        with safe_open(file, "numpy") as library:
            names = library.keys()
            shapes = {name: tuple(library.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        # It is stricter about the free-form metadata, which says nothing of the tensors.
        shapes = None if "metadata" in str(error).lower() else {}
    if shapes is None:
        return
    assert {name: item.shape for name, item in found.items()} == shapes
