"""Requests go in turn: more at once while all goes well, half as many when throttled."""

import asyncio
import random

import pytest

from sessionferry.errors import ThrottledError
from sessionferry.store.cosmos.pace import FIRST, LEAST, MOST, Pace, Window


def test_a_window_grows_by_about_one_per_round_of_successes() -> None:
    window = Window()
    for _ in range(FIRST):
        window.succeeded(running=FIRST)
    assert FIRST + 0.9 < window.size <= FIRST + 1


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = Window()
    for _ in range(1000):
        window.succeeded(running=FIRST - 1)
    assert window.size == FIRST


def test_a_window_has_an_upper_bound() -> None:
    window = Window()
    for _ in range(100_000):
        window.succeeded(running=window.limit)
    assert window.size == MOST


def test_requests_that_were_under_way_together_halve_it_once() -> None:
    window = Window(size=32)
    for _ in range(32):
        window.throttled(sent_in=0)
    assert window.size == 16
    window.throttled(sent_in=window.epoch)
    assert window.size == 8


def test_some_requests_always_go() -> None:
    window = Window()
    for _ in range(20):
        window.throttled(sent_in=window.epoch)
    assert window.limit == LEAST


async def test_no_more_requests_are_under_way_than_the_window_says() -> None:
    pace, most, running = Pace(), 0, 0

    async def request() -> None:
        nonlocal most, running
        async with pace.turn():
            running += 1
            most = max(most, running)
            assert running <= MOST
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(request() for _ in range(200)))
    assert running == 0
    assert FIRST < most <= MOST


async def test_turns_are_first_come_first_served() -> None:
    pace, order = Pace(), []

    async def request(number: int) -> None:
        async with pace.turn():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(request(number) for number in range(60)))
    assert order == list(range(60))


async def test_a_throttled_request_leaves_its_turn_to_others() -> None:
    pace = Pace()
    with pytest.raises(ThrottledError):
        async with pace.turn():
            raise ThrottledError
    assert pace.window.size == FIRST / 2
    async with asyncio.timeout(1), pace.turn():
        pass


async def test_cancelled_requests_lose_no_turn() -> None:
    pace = Pace()
    chance = random.Random(1)

    async def request() -> None:
        async with pace.turn():
            await asyncio.sleep(chance.random() / 500)

    for _ in range(30):
        tasks = [asyncio.create_task(request()) for _ in range(40)]
        await asyncio.sleep(chance.random() / 500)
        for task in chance.sample(tasks, 30):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1):
        await asyncio.gather(*(request() for _ in range(pace.window.limit * 2)))


async def test_a_burst_settles_at_what_the_server_grants() -> None:
    """A server that takes 4 at a time: most requests are answered, none is lost."""
    pace, inside, refused, done = Pace(), 0, 0, 0

    async def request() -> None:
        nonlocal inside, refused, done
        while True:
            try:
                async with pace.turn():
                    inside += 1
                    try:
                        if inside > 4:
                            raise ThrottledError
                        await asyncio.sleep(0.001)
                        done += 1
                        return
                    finally:
                        inside -= 1
            except ThrottledError:
                refused += 1
                await asyncio.sleep(0.002)

    await asyncio.gather(*(request() for _ in range(400)))
    assert done == 400
    assert refused < 200
