"""Headers of weights that nobody's program wrote: each is read, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import generated, refused
from hypothesis import given
from hypothesis import strategies as st

from attnad.training.storage import load_tensors

DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F6_E2M3",
    "F4",
    "I64",
    "U16",
    "U8",
    "BOOL",
    "C64",
]
DTYPES += ["F8_E4M3FNUZ", "X9", ""]
ODD = st.one_of(
    st.none(), st.integers(-1, 9), st.sampled_from([2**63, 2**64, 10**400]), st.floats(), st.text(max_size=3)
)
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(DTYPES) | ODD,
    "shape": st.lists(st.sampled_from([0, 1, 2, 4, 2**31, 2**62, 2**63]), max_size=3) | ODD,
    "data_offsets": st.lists(st.sampled_from([0, 1, 2, 4, 8, 16]), min_size=2, max_size=2) | ODD,
})  # fmt: skip
NAME = st.sampled_from(["a", "b", "", "__metadata__"]) | st.text(max_size=3)


def write_header(path: Path, header: str, data: bytes, more: int = 0) -> None:
    content = header.encode(errors="surrogatepass")
    path.write_bytes(max(0, len(content) + more).to_bytes(8, "little") + content + data)


def test_headers_are_read_or_refused_by_name(tmp_path):
    """Names twice, offsets that overlap, shapes beyond all memory, types of less than a byte."""
    path = tmp_path / "a.safetensors"

    @generated(80)
    @given(
        st.lists(st.tuples(NAME, ENTRY | ODD), max_size=3),
        st.binary(max_size=16),
        st.sampled_from([0, 0, -1, 1, 2**40]),
    )
    def check(pairs: list, data: bytes, more: int) -> None:
        write_header(path, f"{{{','.join(f'{json.dumps(k)}:{json.dumps(v)}' for k, v in pairs)}}}", data, more)
        refused(lambda: load_tensors(path), path)

    check()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ('{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', b""),
        ('{"a":{"dtype":"U8","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}', b""),
        ('{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b"\x01"),
        ('{"__metadata__":null}', b""),
        ('{"a\\u001b[31m\\nattnad: fine":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0\0\x80\x3f"),
        ('{"a\\nb":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0\0\x80\x3f"),
        (
            '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        ('{"a":' * 9999, b""),
    ],
    ids=["2**63", "overflow", "F8", "no metadata", "escapes", "escapes in an error", "overlap", "deep"],
)
def test_these_headers_are_refused(header, data, tmp_path):
    write_header(tmp_path / "a.safetensors", header, data)
    assert refused(lambda: load_tensors(tmp_path / "a.safetensors"), tmp_path / "a.safetensors") is None
