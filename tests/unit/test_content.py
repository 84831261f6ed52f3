"""What is in a session file, also when it is compressed."""

import io
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.agent import content
from sessionferry.agent.content import Unreadable, beginning, opened, unpacked_size


def packed(*parts: bytes) -> bytes:
    """Compress each part as a frame of its own, without saying how large it is."""
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    return b"".join(map(compressor.compress, parts))


@given(st.lists(st.binary(max_size=5_000), min_size=1, max_size=4), st.integers(1, 6_000))
def test_a_compressed_file_holds_what_was_compressed(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], most: int
) -> None:
    path = tmp_path_factory.mktemp("packed") / "a.jsonl.zst"
    path.write_bytes(packed(*parts))
    whole = b"".join(parts)
    with opened(path) as file:
        assert file.read() == whole
    with path.open("rb") as file:
        assert unpacked_size(file) == len(whole)
    assert beginning(path, most) == whole[:most]


def test_a_plain_file_holds_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"line\nrest")
    with opened(path) as file:
        assert file.read() == b"line\nrest"
    assert beginning(path, 4) == b"line"


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "ends in the middle"),
        (packed(b"x" * 90_000)[:-3], "ends in the middle"),
        (packed(b"one") + packed(b"two" * 9_000)[:9], "ends in the middle"),
        (b'{"plain":"text"}\n' * 20, "not valid zstd"),
        (packed(b"one") + b"and something else", "not valid zstd"),
    ],
)
def test_a_damaged_file_is_named_as_such(tmp_path: Path, damaged: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(damaged)
    with pytest.raises(Unreadable, match=why), opened(path):
        pass


def test_a_trap_is_left_before_it_fills_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_UNPACKED_BYTES", 10**8)
    with pytest.raises(Unreadable, match="over 100000000 bytes"):
        unpacked_size(io.BytesIO(packed(bytes(2 * 10**8))))
