"""The frame watch finds batches and mends delivery ids, however the stream is cut."""

import itertools
import struct

from hypothesis import given
from hypothesis import strategies as st

from sessionferry.local.broker import amqp
from sessionferry.local.broker.frames import FrameWatch
from sessionferry.local.broker.message import BATCH_FORMAT


def transfer(number: int, *, batch: bool = False, more: bool = False, body: bytes = b"") -> bytes:
    fields = [amqp.Uint(1), amqp.Uint(number), b"tag"]
    fields += [amqp.Uint(BATCH_FORMAT if batch else 0), False, more]
    performative = amqp.described(0x14, amqp.encode(fields)) + body
    return struct.pack(">IBBH", len(performative) + 8, 2, 0, 0) + performative


def fed(watch: FrameWatch, stream: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return b"".join(watch.feed(stream[a:b]) for a, b in itertools.pairwise(edges))


cuts = st.lists(st.integers(0, 2_000), max_size=12)


@given(cuts)
def test_a_sound_stream_passes_unchanged(at: list[int]) -> None:
    stream = b"AMQP\x00\x01\x00\x00" + transfer(5, body=bytes(300)) + transfer(6) + transfer(7)
    assert fed(FrameWatch(), stream, at) == stream


@given(cuts)
def test_ids_sent_twice_or_out_of_order_become_a_sequence(at: list[int]) -> None:
    watch = FrameWatch()
    sent = b"".join(transfer(number) for number in (5, 5, 8, 7))
    assert fed(watch, sent, at) == b"".join(transfer(number) for number in (5, 6, 7, 8))


@given(cuts)
def test_the_frames_of_one_transfer_keep_one_id(at: list[int]) -> None:
    parts = [transfer(5, more=True), transfer(5, more=True), transfer(5), transfer(6)]
    assert fed(FrameWatch(), b"".join(parts), at) == b"".join(parts)


@given(cuts)
def test_a_batch_is_known_by_its_tag_once(at: list[int]) -> None:
    watch = FrameWatch()
    fed(watch, transfer(1, batch=True, more=True) + transfer(1, batch=True) + transfer(2), at)
    assert watch.take_batch(b"tag")
    assert not watch.take_batch(b"tag")


@given(st.binary(max_size=300), cuts)
def test_noise_is_passed_on_or_held(noise: bytes, at: list[int]) -> None:
    assert len(fed(FrameWatch(), noise, at)) <= len(noise)
