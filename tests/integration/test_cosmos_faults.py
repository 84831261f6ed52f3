"""A fleet through a store that throttles, cuts and fails leaves what a calm run leaves."""

from collections.abc import Iterator

import pytest
from tests.support.cosmos import CosmosProcess

from sessionferry import head_store
from sessionferry.identity import STREAMS
from sessionferry.store.opening import open_store
from support.faulty_runs import LINES, calm_run, fleet, troubled_run
from support.schedules import MemoryArchive, World, check_exact, view

FAULTS = {
    "throttle_rate": 0.3,
    "operation_throttle_rate": 0.01,
    "reset_after_rate": 0.02,
    "reset_before_rate": 0.01,
    "error_rates": {408: 0.005, 449: 0.01, 503: 0.01},
    "retry_after_ms": 5.0,
}


@pytest.fixture
def process() -> Iterator[CosmosProcess]:
    with CosmosProcess() as running:
        yield running


@pytest.mark.parametrize(
    "sessions", [12, pytest.param(730, marks=pytest.mark.slow)], ids=["short", "10,000 messages"]
)
@pytest.mark.timeout(1800)
async def test_a_fleet_through_faults_leaves_what_a_calm_run_leaves(
    sessions: int, process: CosmosProcess
) -> None:
    keys, messages = fleet(sessions, seed=1)
    if sessions > 100:
        assert len(messages) >= 10_000
    expected = await calm_run(messages)
    world = World(None, MemoryArchive(), MemoryArchive())
    async with await open_store(f"cosmos+http://{process.endpoint.split('//')[1]}d") as store:
        world.store = store
        process.clear_statistics()
        process.inject(seed=2, **FAULTS)
        deliveries = await troubled_run(lambda: store, world.archive, messages, seed=3)
        process.inject()
        assert deliveries >= len(messages) * 1.1 - 1
        answered = process.statistics()["requests"]
        throttled = sum(n for name, n in answered.items() if name.endswith(" 429"))
        assert throttled > 0.2 * sum(answered.values())
        for key in keys:
            await check_exact(world, key)
            assert await view(world, key) == await view(expected, key)
            head = (await head_store.read_head(store, key)).head
            state = head.stream("events")
            assert len(state.stored) + len(state.quarantined) == LINES, "the ledger balances"
            assert not any(head.stream(name).conflicts for name in STREAMS)
