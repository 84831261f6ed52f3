"""Checks of the store: does it answer, may we write, is it laid out as this program needs it?"""

import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

from sessionferry.doctor import Finding, Verdict, ok, warning, wrong
from sessionferry.errors import FerryError, UserError
from sessionferry.retrying import within
from sessionferry.settings import Settings, endpoints
from sessionferry.store.cosmos.access import SCHEMES, Access, access
from sessionferry.store.cosmos.account import Account
from sessionferry.store.cosmos.containers import CONTAINERS, Container, differences
from sessionferry.store.cosmos.faults import FORBIDDEN, NOT_FOUND, UNAUTHORIZED, Refusal
from sessionferry.store.cosmos.store import CosmosStore
from sessionferry.store.opening import open_store

_T = TypeVar("_T")

SKEW_SECONDS = 5.0
"""Seconds that clocks may differ before locks and times of the fleet are off."""
_PATIENCE = 4.0
"""Seconds that one request is tried: a person waits."""
_PROVISION = "Deploy the infrastructure: `azd provision`."
_RIGHTS = (
    "Give this identity the role `Cosmos DB Built-in Data Contributor` on the account; "
    "it takes some minutes to apply."
)


async def check_store(settings: Settings) -> AsyncIterator[Finding]:
    """Look at the store that this machine's commands read."""
    try:
        target = endpoints(settings)
        if target.store_url is None and (target.connection or target.namespace):
            # A fleet machine sends, and has no right to read.
            return
        url = target.store.get_secret_value()
        wanted = access(url, settings) if urlsplit(url).scheme in SCHEMES else None
    except UserError as error:
        yield wrong("store", str(error), "Set FERRY_STORE or FERRY_COSMOS_ENDPOINT.")
        return
    if wanted is not None:
        async for finding in check_cosmos(wanted):
            yield finding
        return
    try:
        async with await open_store(url, settings) as store:
            await store.check()
    except FerryError as error:
        yield wrong("store", str(error), "")
    else:
        yield ok("store", f"{urlsplit(url).scheme} answers, with the schema of this version.")


async def check_cosmos(wanted: Access) -> AsyncIterator[Finding]:
    """Look at a Cosmos DB account, without changing anything but an item of its own."""
    account = Account(wanted)
    try:
        await _briefly(lambda: account.connect(check=False))
    except FerryError as error:
        await account.disconnect()
        yield _unreachable(wanted, error)
        return
    try:
        yield ok("account", f"{wanted.shown} answers.")
        yield _clock(account)
        found = [await _container(account, it) for it in CONTAINERS.values()]
        for finding in itertools.chain.from_iterable(found):
            yield finding
        if not any(it.verdict is Verdict.WRONG for it in itertools.chain.from_iterable(found)):
            yield await _rights(account)
    finally:
        await account.disconnect()


async def _briefly(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do something for as long as a person waits; what is retried inside ends with it."""
    with within(_PATIENCE):
        return await work()


def _unreachable(wanted: Access, error: FerryError) -> Finding:
    if f"({UNAUTHORIZED})" in str(error):
        fix = "Check FERRY_COSMOS_KEY; where keys are disabled, leave it unset and log in to Azure."
    elif "credential" in str(error):
        fix = "Log in with `az login`, or set AZURE_CLIENT_ID where the identity is a managed one."
    elif f"({FORBIDDEN})" in str(error):
        fix = _RIGHTS
    else:
        fix = "Check FERRY_COSMOS_ENDPOINT, the network, and the account's firewall."
    return wrong("account", f"{wanted.shown} cannot be used: {error}", fix)


def _clock(account: Account) -> Finding:
    if account.last_date is None:
        return warning("clock", "The account did not tell its time.", "")
    told, at = account.last_date
    skew = at - parsedate_to_datetime(told).timestamp()
    # The header has whole seconds, and travels.
    if abs(skew) <= SKEW_SECONDS:
        return ok("clock", f"This machine's clock is within {SKEW_SECONDS:.0f} s of the account's.")
    ahead = "ahead of" if skew > 0 else "behind"
    said = f"This machine's clock is {abs(skew):.0f} s {ahead} the account's."
    return wrong("clock", said, "Synchronise it (NTP): a key is refused from 15 minutes on.")


async def _container(account: Account, container: Container) -> list[Finding]:
    name = f"container {container.name}"
    try:
        found = await _briefly(lambda: account.send(account.container(container.name).read))
    except Refusal as refusal:
        if refusal.status != NOT_FOUND:
            return [wrong(name, str(refusal), "")]
        return [wrong(name, "It is not there, or its database is not.", _PROVISION)]
    except FerryError as error:
        return [wrong(name, str(error), _fix_of(error))]
    different = differences(container, found)
    if not different:
        return [ok(name, "It has the partition key and the indexes of this version.")]
    return [_difference(name, sentence) for sentence in different]


def _difference(name: str, sentence: str) -> Finding:
    said = f"{sentence[0].upper()}{sentence[1:]}."
    if "partition key" in sentence:
        return wrong(name, said, "That cannot be changed: name another database.")
    return warning(name, said, f"{_PROVISION} Azure changes the index in place.")


def _fix_of(error: FerryError) -> str:
    return _RIGHTS if f"({FORBIDDEN})" in str(error) else ""


async def _rights(account: Account) -> Finding:
    """Create, replace and delete an item that nobody else looks at."""
    store = CosmosStore(account)
    probe = {"id": f"doctor-{secrets.token_hex(8)}", "partition_key": "doctor", "ttl": 60}

    async def write() -> None:
        etag = await store.write_item("attempts", probe, None)
        await store.write_item("attempts", probe | {"again": True}, etag)
        await store.delete_item("attempts", "doctor", str(probe["id"]))

    try:
        await _briefly(write)
    except FerryError as error:
        return wrong("rights", f"Items cannot be written: {error}", _fix_of(error))
    return ok("rights", "Items can be created, replaced and deleted.")
