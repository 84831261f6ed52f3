"""Heartbeats: who is alive here, and this machine's side of the books."""

import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from uuid import uuid4

import orjson

from sessionferry.agent.collecting import AGENT
from sessionferry.agent.spool import Ledger
from sessionferry.batch import Header, utc_now
from sessionferry.host import Identity, machine_fingerprint
from sessionferry.packing import Packed, pack_whole
from sessionferry.statements import Statement, own_prefix, render


class Heart:
    """Makes the heartbeats of one run of the agent."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._run_id = uuid4().hex
        self._started_at = utc_now()
        self.prefix = own_prefix(identity.user_id)
        """What the keys of the sessions begin with that this machine can speak of."""

    def beat(self, ledger: Ledger, statements: Sequence[Statement] = ()) -> Packed:
        """Return the next heartbeat, with what the queue took of some streams."""
        sent = {key.removeprefix(self.prefix): said for key, said in render(statements).items()}
        body = {
            "run_id": self._run_id,
            "machine": machine_fingerprint(),
            "hostname": socket.gethostname(),
            "started_at": self._started_at,
            "ledger": asdict(ledger),
            **({"sent": sent} if sent else {}),
        }
        header = Header(
            kind="heartbeat",
            user_id=self._identity.user_id,
            host_id=self._identity.host_id,
            revision=time.time_ns(),
            agent=AGENT,
        )
        return pack_whole(header, orjson.dumps(body))
