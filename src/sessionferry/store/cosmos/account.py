"""One client per account and process: connections, credentials, pace, and each request's retries.

The client's own retries are switched off, so that there is one place that waits, and one number of
requests under way. What stays with the client is going to another region of the account.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar

from azure.core.exceptions import AzureError
from azure.cosmos.aio import ContainerProxy, CosmosClient

from sessionferry import telemetry
from sessionferry.errors import TransientError, UserError
from sessionferry.retrying import check_time, retry
from sessionferry.store.cosmos import faults
from sessionferry.store.cosmos.access import Access
from sessionferry.store.cosmos.containers import CONTAINERS, Container
from sessionferry.store.cosmos.faults import Refusal
from sessionferry.store.cosmos.pace import Pace
from sessionferry.store.cosmos.transport import BatchTransport

Result = TypeVar("Result")

READ_SECONDS: Final = 20.0
"""How long an answer may take. Cosmos DB ends an operation after 5 s; shorter than the 30 s that
rule R6 leaves at the end of a message's lock, so that no write outlives the lock."""
CONNECT_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 15.0
"""How long one request is tried; less where the retry around it ends earlier."""

_open: dict[tuple[asyncio.AbstractEventLoop, Access], "Account"] = {}


class Account:
    """An account's database. Get one with `Account.open`; `close` it as often as it was opened."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.pace = Pace()
        self.requests = 0
        self.charge = 0.0
        self.last_date: tuple[str, float] | None = None
        self._users = 0
        self._stack = AsyncExitStack()
        self._ready: asyncio.Task[None] | None = None
        self._client: CosmosClient | None = None

    @classmethod
    async def open(cls, access: Access) -> "Account":
        """Connect, or join the connection of this process to the same account.

        Raises `UserError` when the account, the database or a container is not there.
        """
        place = (asyncio.get_running_loop(), access)
        account = _open.get(place)
        if account is None:
            account = _open[place] = cls(access)
            account._ready = asyncio.ensure_future(account.connect())
        account._users += 1
        try:
            # Shielded: whoever gives up waiting does not take the connection from the others.
            await asyncio.shield(account._ready)  # type: ignore[arg-type]
        except BaseException:
            await account.close()
            raise
        return account

    async def close(self) -> None:
        """Release the connections when nobody uses them any more."""
        self._users -= 1
        if self._users:
            return
        _open.pop((asyncio.get_running_loop(), self.access), None)
        if self._ready is not None and not self._ready.done():
            self._ready.cancel()
            await asyncio.wait([self._ready])
        await self.disconnect()

    def container(self, name: str) -> ContainerProxy:
        """Return a container's client."""
        if self._client is None:
            raise UserError("The store is closed.")
        database = self._client.get_database_client(self.access.database)
        return database.get_container_client(name)

    async def send(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Send one request, as often as it takes; raises `Refusal` when the answer is no.

        Raises `TransientError` or `ThrottledError` when the time is over.
        """
        try:
            try:
                return await self._persist(request)
            except Refusal as refusal:
                if refusal.status != faults.UNAUTHORIZED:
                    raise
            # A token may have expired: the client has dropped it and gets another one.
            return await self._persist(request)
        except Refusal as refusal:
            if refusal.status not in {faults.UNAUTHORIZED, faults.FORBIDDEN}:
                raise
            # Operators repair rights while the messages wait.
            raise TransientError(f"{self.access.shown}: {refusal}") from refusal

    async def _persist(self, request: Callable[[], Awaitable[Result]]) -> Result:
        async def attempt() -> Result:
            async with self.pace.turn():
                check_time()
                try:
                    return await request()
                except AzureError as error:
                    raise faults.translated(error) from error

        return await retry(attempt, seconds=RETRY_SECONDS)

    # ------------------------------------------------------------ connecting

    async def connect(self, *, check: bool = True) -> None:
        """Connect this one; raises `UserError` when it cannot be used, checked or not."""
        client = await self._new_client()
        self._stack.push_async_callback(client.close)
        try:
            await self.send(client.__aenter__)
            self._client = client
            if self.access.creates:
                await self._create(client)
            if check:
                await self.check()
        except Refusal as refusal:
            raise UserError(f"{self.access.shown} cannot be opened: {refusal}") from refusal

    async def disconnect(self) -> None:
        """Release the connections."""
        await self._stack.aclose()

    async def _new_client(self) -> CosmosClient:
        access = self.access
        return CosmosClient(
            access.endpoint,
            credential=await self._credential(),
            user_agent_suffix="sessionferry",
            read_timeout=READ_SECONDS,
            connection_timeout=CONNECT_SECONDS,
            # -1, because the client takes 0 for "not given".
            retry_throttle_total=-1,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_status=0,
            retry_write=0,
            # An emulator names endpoints of its own, which may lead nowhere from here.
            enable_endpoint_discovery=not access.is_local,
            # Text beyond ASCII would else grow to two or three times its size.
            enable_compact_utf8_item_writes=True,
            raw_response_hook=self._count,
            throughput_bucket=access.throughput_bucket,
            transport=BatchTransport(),
        )

    async def _credential(self) -> Any:
        if self.access.key is not None:
            return self.access.key.get_secret_value()
        if self.access.credential is not None:
            return self.access.credential
        from azure.identity.aio import DefaultAzureCredential

        return await self._stack.enter_async_context(DefaultAzureCredential())

    def _count(self, response: Any) -> None:
        self.requests += 1
        headers = response.http_response.headers
        if "Date" in headers:
            self.last_date = (headers["Date"], time.time())
        charged = headers.get("x-ms-request-charge")
        try:
            charge = float(charged or 0)
        except ValueError:
            return
        self.charge += charge
        telemetry.add("ferry_store_charged", charge)

    async def _create(self, client: CosmosClient) -> None:
        database = await self.send(
            lambda: client.create_database_if_not_exists(self.access.database)
        )
        for container in CONTAINERS.values():
            await self.send(partial(_create_container, database, container))

    # ------------------------------------------------------------ checking

    async def check(self) -> None:
        """Prove that every container is there, with the partition key that is relied upon."""
        found = await asyncio.gather(*map(self.properties, CONTAINERS.values()))
        for container, properties in zip(CONTAINERS.values(), found, strict=True):
            paths = properties["partitionKey"]["paths"]
            if paths != [container.partition_key]:
                raise UserError(
                    f"{self.access.shown}: the container {container.name} is partitioned by "
                    f"{', '.join(paths)}, not by {container.partition_key}. A partition key cannot "
                    "be changed: name another database with FERRY_COSMOS_DATABASE."
                )

    async def properties(self, container: Container) -> dict[str, Any]:
        """Read a container's definition; raises `UserError` if it is not there."""
        try:
            return await self.send(lambda: self.container(container.name).read())
        except Refusal as refusal:
            if refusal.status != faults.NOT_FOUND:
                raise
            raise UserError(
                f"{self.access.shown} has no container {container.name}. Deploy the infrastructure "
                "(`azd provision`), or set FERRY_COSMOS_CREATE=true to create it from here."
            ) from refusal


async def _create_container(database: Any, container: Container) -> None:
    from azure.cosmos import PartitionKey

    await database.create_container_if_not_exists(
        container.name,
        PartitionKey(container.partition_key),
        indexing_policy=container.indexing_policy,
        default_ttl=container.default_ttl,
    )
