"""Reading files in blocks of whole lines."""

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.agent import reading
from sessionferry.agent.reading import Blocks, LineTooLong, prefix_digest


@given(
    content=st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"bcd" * 7])).map(b"".join),
    chunk=st.integers(1, 40),
)
def test_blocks_hold_whole_lines_and_give_the_file_back(content: bytes, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", chunk)
        blocks = Blocks(io.BytesIO(content))
        found = list(blocks)
    assert all(block.endswith(b"\n") for block in found)
    assert b"\n" not in blocks.rest
    assert b"".join(found) + blocks.rest == content


def test_blocks_go_on_where_the_file_stands() -> None:
    file = io.BytesIO(b"one\ntwo\nthr")
    file.seek(4)
    blocks = Blocks(file)
    assert list(blocks) == [b"two\n"]
    assert blocks.rest == b"thr"


def test_an_over_long_line_is_refused_but_what_stands_before_it_is_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 100)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    blocks = iter(Blocks(io.BytesIO(b"before\n" + b"x" * 2000 + b"\nafter\n")))
    assert next(blocks) == b"before\n"
    with pytest.raises(LineTooLong, match="1000 bytes"):
        next(blocks)
    long_but_allowed = b"x" * 999 + b"\n"
    assert b"".join(Blocks(io.BytesIO(long_but_allowed * 3))) == long_but_allowed * 3


@given(content=st.binary(max_size=200), length=st.integers(0, 250))
def test_a_prefix_is_hashed_if_the_file_has_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "prefix"
    path.write_bytes(content)
    with path.open("rb") as file:
        digest = prefix_digest(file, length)
        if length > len(content):
            assert digest is None
        else:
            assert digest is not None
            assert digest.digest() == hashlib.sha256(content[:length]).digest()
            assert file.tell() == length
