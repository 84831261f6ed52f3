"""What was set aside, by the commands that bring it back: dead letters and quarantine."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from sessionferry.archive import Archive, batch_key
from sessionferry.batch import encode
from sessionferry.consumer import open_ingest
from sessionferry.delivery import Message
from sessionferry.orphans import ORPHAN_DAYS
from sessionferry.settings import Settings
from support.broker import RunningBroker, forget_leaked_sockets
from support.commands import CommandServer
from support.stack import Ferry, RunningStack, wait_for
from support.strategies import batch

OUTAGE = "MaxDeliveryCountExceeded"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with RunningBroker(tmp_path / "broker", [{"name": "sessions"}]) as running:
        yield running
    forget_leaked_sockets()


@pytest.fixture
def remote(broker: RunningBroker, tmp_path: Path, server: CommandServer) -> Ferry:
    """The command as it is configured for Azure: endpoints by settings, nothing runs here."""
    places = {name: (tmp_path / name).as_uri() for name in ("archive", "inbox")}
    environment = {
        "ServiceBusConnection": broker.connection_string,
        "FERRY_STORE": f"sqlite:///{tmp_path / 'store.db'}",
        "FERRY_ARCHIVE": places["archive"],
        "FERRY_INBOX": places["inbox"],
    }
    return Ferry(tmp_path / "home", environment=environment, server=server)


def write_session(folder: Path, bad: bytes = b"") -> Path:
    session = folder / "projects" / "-srv-app" / "sessions" / "s1"
    session.mkdir(parents=True)
    events = [json.dumps({"event": "tool:pre", "data": {"n": n}}) for n in range(30)]
    tail = bad + b"\n" if bad else b""
    (session / "events.jsonl").write_bytes("\n".join(events).encode() + b"\n" + tail)
    return folder


def dead_letter_all(client: ServiceBusClient, reason: str) -> int:
    """Do to the queue's messages what an outage longer than all deliveries does."""
    count = 0
    with client.get_queue_receiver("sessions", keep_alive=0, prefetch_count=1) as receiver:
        while receiver.peek_messages(1, sequence_number=1):
            for message in receiver.receive_messages(10, max_wait_time=5):
                receiver.dead_letter_message(message, reason=reason)
                count += 1
    return count


def ingest_all(client: ServiceBusClient, ferry: Ferry) -> None:
    """Be the function app for what lies in the queue."""
    messages = []
    with client.get_queue_receiver("sessions", keep_alive=0, prefetch_count=1) as receiver:
        while receiver.peek_messages(1, sequence_number=1):
            for message in receiver.receive_messages(10, max_wait_time=5):
                messages.append(
                    Message(body=b"".join(message.body), message_id=str(message.message_id))
                )
                receiver.complete_message(message)
    given = {name.removeprefix("FERRY_").lower(): v for name, v in ferry.environment.items()}
    settings = Settings(**{name: given[name] for name in ("store", "archive", "inbox")})

    async def run() -> None:
        ingest = await open_ingest(settings)
        await ingest.take_in(messages)
        await ingest.store.close()

    asyncio.run(run())


def records(ferry: Ferry) -> dict[str, dict[str, object]]:
    """The records in the archive, by their object's key."""

    async def read() -> dict[str, dict[str, object]]:
        archive = Archive.open(ferry.environment["FERRY_ARCHIVE"])
        keys = [found.key async for found in archive.objects("_audit")]
        return {key: json.loads(await archive.get(key)) for key in sorted(keys)}

    return asyncio.run(read())


def test_what_an_outage_dead_lettered_comes_back(
    broker: RunningBroker, remote: Ferry, tmp_path: Path
) -> None:
    source = write_session(tmp_path / "amplifier")
    remote.run("ship", source)
    with ServiceBusClient.from_connection_string(broker.connection_string) as client:
        sent = dead_letter_all(client, OUTAGE)
        with client.get_queue_sender("sessions", keep_alive=0) as sender:
            junk = ServiceBusMessage(b"\x1b[2Jnonsense")
            # The client receives binary properties, and cannot send them.
            junk.raw_amqp_message.application_properties = {"raw": bytearray(b"\xff")}  # type: ignore[dict-item]
            sender.send_messages(junk)
        dead_letter_all(client, "poison")

        *batches, dead = remote.run("dlq", "list", "--json").json
        assert len(batches) == sent
        (batch,) = (found for found in batches if found["kind"] == "lines")
        assert (batch["reason"], batch["kind"], batch["lines"]) == (OUTAGE, "lines", 30)
        assert batch["session"].endswith("|-srv-app|s1")
        assert (dead["reason"], dead["kind"], dead["error"]) == (
            "poison",
            "undecodable",
            "bad_batch",
        )
        assert "undecodable" in remote.run("dlq", "list", "--reason", "poison").stdout
        shown = remote.run("dlq", "show", batch["number"]).stdout
        assert '"event": "tool:pre"' in shown
        assert "-srv-app" in shown
        assert "\\x1b[2Jnonsense" in remote.run("dlq", "show", dead["number"]).stdout
        assert "no dead letter 99" in remote.run("dlq", "show", 99, code=2).stderr

        planned = remote.run("dlq", "replay", "--reason", OUTAGE, "--dry-run", "--json").json
        assert planned == {"would_be": sent, "reasons": {OUTAGE: sent}}
        assert records(remote) == {}

        done = remote.run("dlq", "replay", "--reason", OUTAGE, "--json").json
        assert (done["replayed"], done["left"], done["failed"]) == (sent, 0, [])
        ingest_all(client, remote)
        assert [found["verdict"] for found in remote.verify(source, code=0)] == ["ok"]

        stays = remote.run("dlq", "replay", dead["number"], "--json", code=3).json
        assert (stays["replayed"], stays["left"]) == (0, 1)
        assert "cannot be sent" in stays["failed"][0]["detail"]

        assert "say --yes" in remote.run("dlq", "purge", code=2).stderr
        assert "1 dead letters were purged" in remote.run("dlq", "purge", "--yes").stdout
        assert "no dead letters" in remote.run("dlq", "list").stdout
        assert "0 dead letters were replayed" in remote.run("dlq", "redrive").stdout

    replayed, _, purged = (
        record for key, record in records(remote).items() if key.endswith("/ended.json")
    )
    assert replayed["action"] == "dlq replay"
    assert replayed["counts"] == {"asked": sent, "done": sent, "failed": 0}
    assert "@" in str(replayed["who"])
    assert replayed["outcome"] == "done"
    assert purged["action"] == "dlq purge"


def test_the_quarantine_goes_through_the_running_app_and_what_is_wrong_stays(
    stack: RunningStack, ferry: Ferry, tmp_path: Path
) -> None:
    source = write_session(tmp_path / "amplifier", bad=b'{"event": \x1b[31m}')
    ferry.run("ship", source)
    ferry.wait(source)
    (entry,) = ferry.run("quarantine", "list", "--session", "s1", "--json").json
    assert (entry["reason"], entry["sequence"]) == ("not_json", 30)
    assert entry["id"] in ferry.run("quarantine", "list", "--reason", "not_json").stdout
    assert '{"event": \\x1b[31m}' in ferry.run("quarantine", "show", entry["id"]).stdout
    assert "no quarantine entry" in ferry.run("quarantine", "show", "nope", code=2).stderr

    planned = ferry.run("quarantine", "replay", entry["id"], "--dry-run", "--json").json
    assert (planned["would_be"], planned["messages"]) == (1, 1)
    done = ferry.run("quarantine", "replay", entry["id"], "--json", code=3).json
    assert (done["cleared"], done["stay"], done["waiting"]) == (0, 1, 0)
    assert [left["id"] for left in done["left"]] == [entry["id"]]
    (again,) = ferry.run("quarantine", "list", "--session", "s1", "--json").json
    assert again["created_at"] > entry["created_at"]
    assert ferry.verify(source)[0]["quarantined"] == 1
    assert ferry.run("sweep", "--json").json["heads"] >= 1


def test_archived_bytes_that_no_head_counts_are_sent_home(
    stack: RunningStack, ferry: Ferry
) -> None:
    made = batch(b'{"event": "e"}\n', user_id="orphan")
    path = stack.data / "archive" / batch_key(made.header, made.id)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(made))
    assert ferry.run("orphans", "--json").json["uncounted"] == []
    assert "may be on its way" in ferry.run("orphans", "--delete", "--days", 0, code=2).stderr
    old = time.time() - timedelta(days=ORPHAN_DAYS + 1).total_seconds()
    os.utime(path, (old, old))
    (orphan,) = ferry.run("orphans", "--json", code=3).json["uncounted"]
    assert orphan["key"] == batch_key(made.header, made.id)
    assert "1 were sent" in ferry.run("orphans", "--send").stdout
    assert wait_for(lambda: "no orphans" in ferry.run("orphans", code=None).stdout, 30)
    (session,) = ferry.run("sessions", "--user", "orphan", "--json").json
    assert session["event_count"] == 1
