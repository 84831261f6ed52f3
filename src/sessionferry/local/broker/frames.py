"""Watches the frames of a client on their way into proton, for what proton does not tell.

Two things are needed of transfer frames: the message format, which marks a batch, and a delivery
id without gaps. Threads of azure-servicebus that share a connection send ids twice or out of order;
the service takes them, proton would end the connection.
"""

from collections import Counter
from typing import Final

from sessionferry.local.broker import amqp
from sessionferry.local.broker.errors import DecodeError
from sessionferry.local.broker.message import BATCH_FORMAT

_HEADER: Final = 8
_LOOK: Final = 128  # bytes of a frame that hold the fields of interest
_REMEMBERED: Final = 1_000
_BEGIN, _TRANSFER = b"\x00\x53\x11", b"\x00\x53\x14"
_HANDLE, _ID, _TAG, _FORMAT, _MORE = 0, 1, 2, 3, 5


class FrameWatch:
    """One client's stream; `feed` gives back what proton may read now."""

    def __init__(self) -> None:
        self._held = b""
        self._rest = 0  # bytes of the current frame that are still to pass
        self._blind = False
        self._batches: Counter[bytes] = Counter()
        self._next_id: dict[bytes, int] = {}
        self._partial: dict[tuple[bytes, bytes], int] = {}

    def take_batch(self, tag: bytes) -> bool:
        """Whether the delivery of that tag came as a batch; asked once per delivery."""
        if not self._batches[tag]:
            return False
        self._batches[tag] -= 1
        self._batches += Counter()  # drops what is zero
        return True

    def feed(self, data: bytes) -> bytes:
        """Look at every frame that starts in `data`; the head of a frame is held until whole."""
        if self._blind:
            return data
        data, self._held = self._held + data, b""
        pos = 0
        while pos < len(data):
            if self._rest:
                passed = min(self._rest, len(data) - pos)
                self._rest -= passed
                pos += passed
                continue
            self._rest = self._frame_size(data, pos)
            if not self._rest:
                self._blind = True  # malformed, which proton will say
                break
            if len(data) - pos < min(max(self._rest, _HEADER), _LOOK):
                self._held, data, self._rest = data[pos:], data[:pos], 0
                break
            if data[pos : pos + 4] != b"AMQP" and data[pos + 5] == 0:
                data = self._look(data, pos)
        return data

    def _frame_size(self, data: bytes, pos: int) -> int:
        if data[pos : pos + 4] == b"AMQP"[: len(data) - pos]:
            return _HEADER
        size = int.from_bytes(data[pos : pos + 4], "big") if len(data) - pos >= 4 else _HEADER
        return size if size >= _HEADER else 0

    def _look(self, data: bytes, pos: int) -> bytes:
        start, channel = pos + data[pos + 4] * 4, data[pos + 6 : pos + 8]
        kind = data[start : start + 3]
        if kind == _BEGIN:
            self._next_id.pop(channel, None)
        elif kind == _TRANSFER:
            try:
                return self._transfer(data, start + 3, channel)
            except DecodeError:
                pass  # proton will say so
        return data

    def _transfer(self, data: bytes, pos: int, channel: bytes) -> bytes:
        fields = _fields(data, pos)
        handle = data[slice(*fields[_HANDLE])]
        at, end = fields[_ID]
        given = amqp.decode(data, at)[0]
        if len(fields) > _FORMAT and amqp.decode(data, fields[_FORMAT][0])[0] == BATCH_FORMAT:
            tag = amqp.decode(data, fields[_TAG][0])[0]
            if isinstance(tag, bytes) and (channel, handle) not in self._partial:
                self._batches[tag] += 1
                if len(self._batches) > _REMEMBERED:  # batches to where no batch belongs
                    self._batches.clear()
        if not isinstance(given, int):
            return data
        more = len(fields) > _MORE and amqp.decode(data, fields[_MORE][0])[0]
        wanted = self._number(channel, handle, given, more=bool(more))
        return data if wanted == given else _patched(data, at, end, wanted)

    def _number(self, channel: bytes, handle: bytes, given: int, *, more: bool) -> int:
        """The id that this transfer should have."""
        wanted = self._partial.pop((channel, handle), None)
        if wanted is None:
            wanted = self._next_id.get(channel, given)
            self._next_id[channel] = wanted + 1 & 0xFFFF_FFFF
        if more:
            self._partial[channel, handle] = wanted
        return wanted


def _fields(data: bytes, pos: int) -> list[tuple[int, int]]:
    """The extents of the first fields of a performative."""
    code = data[pos : pos + 1]
    if code == b"\xc0":
        count, pos = data[pos + 2], pos + 3
    elif code == b"\xd0":
        count, pos = int.from_bytes(data[pos + 5 : pos + 9], "big"), pos + 9
    else:
        raise DecodeError("A performative is not a list.")
    found = []
    for _ in range(min(count, _MORE + 1)):
        end = amqp.skip(data, pos)
        found.append((pos, end))
        pos = end
    if len(found) <= _ID:
        raise DecodeError("A transfer lacks its first fields.")
    return found


def _patched(data: bytes, at: int, end: int, number: int) -> bytes:
    """The number written in the room that there is; without room the frame stays as it is."""
    room = end - at - 1
    if not room or number >= 1 << 8 * room:
        return data
    return data[: at + 1] + number.to_bytes(room, "big") + data[end:]
