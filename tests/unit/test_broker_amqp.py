"""The AMQP codec agrees with proton's, and bytes from strangers cost nothing but an error."""

import contextlib
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proton import Data

from sessionferry.local.broker import amqp
from sessionferry.local.broker.errors import DecodeError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.uuids()
    | st.integers(0, 2**32 - 1).map(amqp.Uint)
    | st.integers(0, 2**60).map(amqp.Timestamp)
    | st.text(alphabet="abc-:", max_size=20).map(amqp.Symbol)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(values)
def test_a_value_survives_encoding_and_decoding(value: Any) -> None:
    encoded = amqp.encode(value)
    assert amqp.decode(encoded) == (value, len(encoded))
    assert amqp.skip(encoded, 0) == len(encoded)


@given(values)
def test_proton_reads_what_is_encoded(value: Any) -> None:
    data = Data()
    data.decode(amqp.encode(value))
    data.rewind()
    data.next()
    assert data.get_object() == value


@given(st.lists(st.uuids(), max_size=40))
def test_an_array_is_read_back_as_a_list(tokens: list[UUID]) -> None:
    assert amqp.decode(amqp.encode(amqp.Array(tokens)))[0] == tokens


@given(st.binary(max_size=200))
def test_random_bytes_are_decoded_or_refused(raw: bytes) -> None:
    for read in (amqp.decode, amqp.skip):
        with contextlib.suppress(DecodeError):
            read(raw, 0)


@given(values, st.data())
def test_a_truncated_value_is_refused(value: Any, data: st.DataObject) -> None:
    encoded = amqp.encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DecodeError):
        amqp.decode(encoded[:cut])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xf0\xff\xff\xff\xff\xff\xff\xff\xff\x40", id="array longer than its bytes"),
        pytest.param(b"\xe0\x02\xff\x40", id="array of many members without a width"),
        pytest.param(b"\xc0\x03\xff\x40\x40", id="list with fewer members than announced"),
        pytest.param(b"\xc1\x02\x01\x40", id="map with a key and no value"),
        pytest.param(b"\xc1\x04\x02\xc0\x01\x00\x40", id="map with a compound key"),
        pytest.param(b"\x00" * 10_000, id="descriptors without end"),
        pytest.param(b"\xa1\x01\xff", id="text that is not utf-8"),
        pytest.param(b"\x3f", id="no such type"),
    ],
)
def test_hostile_values_are_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        amqp.decode(raw)
