"""The queries that the store sends, each with its parameters. All values are parameters."""

import base64
import binascii
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import orjson

from sessionferry.errors import UserError
from sessionferry.store import SEARCHED, EventFilter
from sessionferry.store.cosmos.containers import LISTING_KEY
from sessionferry.truncation import KEPT_FIELDS

MAX_IDS: Final = 1000
"""Ids in one query."""
MAX_SPAN: Final = 5000
"""Documents looked up with one query, about."""
_MAX_TIME_CHARS: Final = 64
_FOREIGN: Final = "The continuation token is not one of this listing."
_END: Final = "\U0010ffff"
_BETWEEN: Final = "\t"
"""Sorts before what ids, keys and times are made of."""

# What `documents.stored_facts` reads; the payload stays where it is.
_FACTS = ", ".join(
    f"c.{name}"
    for name in (
        *("sequence", "line_sha256", "line_size_bytes", "data_truncated", "repaired"),
        *("occurred_at", "format", "_type", "summary"),
        *KEPT_FIELDS,
    )
)


_LATER = "(c.sequence < @sequence OR (c.sequence = @sequence AND c.partition_key < @partition))"
_OLDER = f"(c.occurred_at < @time OR (c.occurred_at = @time AND {_LATER}))"


class Place(NamedTuple):
    """Where a search left off."""

    occurred_at: str | None
    sequence: int
    partition: str


class Query(NamedTuple):
    """A query and its parameters."""

    text: str
    parameters: list[dict[str, Any]]


def query(text: str, **values: Any) -> Query:
    """Name the parameters as Cosmos DB wants them."""
    return Query(text, [{"name": f"@{name}", "value": value} for name, value in values.items()])


def facts_between(generation: int, first: int, last: int) -> Query:
    """Read what a head counts of the stored lines from `first` to `last`.

    Lines that amplifier-session-storage wrote have no generation, and the ids of generation 0.
    """
    theirs = "" if generation else " OR NOT IS_DEFINED(c.generation)"
    return query(
        f"SELECT {_FACTS} FROM c WHERE (c.generation = @generation{theirs})"  # noqa: S608
        " AND c.sequence >= @first AND c.sequence <= @last",
        generation=generation,
        first=first,
        last=last,
    )


def sequences_between(generation: int, first: int, last: int) -> Query:
    """Read which of the lines from `first` to `last` are stored."""
    return query(
        "SELECT VALUE c.sequence FROM c WHERE c.generation = @generation"
        " AND c.sequence >= @first AND c.sequence <= @last",
        generation=generation,
        first=first,
        last=last,
    )


def lines_after(generation: int, after: int, limit: int) -> Query:
    """Read documents in order of sequence."""
    return query(
        f"SELECT TOP {int(limit)} * FROM c"  # noqa: S608
        " WHERE c.generation = @generation AND c.sequence > @after"
        " ORDER BY c.generation ASC, c.sequence ASC",
        generation=generation,
        after=after,
    )


def ids_among(ids: Collection[str]) -> Query:
    """Read which of these ids exist."""
    return query("SELECT VALUE c.id FROM c WHERE ARRAY_CONTAINS(@ids, c.id)", ids=list(ids))


def entries_of(stream: str | None, below_generation: int | None) -> Query:
    """Read the ids of a partition's quarantine entries."""
    wanted = {"stream": stream, "generation": below_generation}
    given = {name: value for name, value in wanted.items() if value is not None}
    compared = {"stream": "c.stream = @stream", "generation": "c.generation < @generation"}
    conditions = " AND ".join(compared[name] for name in given) or "true"
    return query(f"SELECT VALUE c.id FROM c WHERE {conditions}", **given)  # noqa: S608


def listed(before: str | None, limit: int, project_slug: str | None = None) -> Query:
    """Read a page of a listing, newest first."""
    where, order = f"c.{LISTING_KEY} < @before", f"c.{LISTING_KEY} DESC"
    values: dict[str, Any] = {"before": _END if before is None else before}
    if project_slug is not None:
        where, order = f"c.project_slug = @project AND {where}", f"c.project_slug DESC, {order}"
        values["project"] = project_slug
    text = f"SELECT TOP {int(limit)} * FROM c WHERE {where} ORDER BY {order}"  # noqa: S608
    return query(text, **values)


def timed_events(wanted: EventFilter, after: Place | None, limit: int) -> Query:
    """Search events that have a time, newest first."""
    conditions, values = _events(wanted)
    since = {"c.occurred_at >= @since": wanted.since, "c.occurred_at < @until": wanted.until}
    conditions += [condition for condition, value in since.items() if value is not None]
    values |= {"since": wanted.since} if wanted.since is not None else {}
    values |= {"until": wanted.until} if wanted.until is not None else {}
    if after is not None:
        conditions.append(_OLDER)
        place = {"sequence": after.sequence, "partition": after.partition}
        values |= {"time": after.occurred_at, **place}
    elif wanted.since is None and wanted.until is None:
        conditions.append('c.occurred_at > ""')
    return _newest_first(conditions, values, limit)


def untimed_events(wanted: EventFilter, after: Place | None, limit: int) -> Query:
    """Search events without a time. Apart, because the client cannot merge null with texts."""
    conditions, values = _events(wanted)
    conditions.append("IS_NULL(c.occurred_at)")
    if after is not None:
        conditions.append(_LATER)
        values |= {"sequence": after.sequence, "partition": after.partition}
    return _newest_first(conditions, values, limit)


def _events(wanted: EventFilter) -> tuple[list[str], dict[str, Any]]:
    conditions = ["c.user_id = @user"]
    values: dict[str, Any] = {"user": wanted.user_id, **wanted.texts}
    conditions += [f"c.{'.'.join(SEARCHED[name])} = @{name}" for name in wanted.texts]
    if wanted.project_slug is not None:
        conditions.append("c.project_slug = @project")
        values["project"] = wanted.project_slug
    return conditions, values


def _newest_first(conditions: list[str], values: dict[str, Any], limit: int) -> Query:
    text = (
        f"SELECT TOP {int(limit)} * FROM c WHERE {' AND '.join(conditions)}"  # noqa: S608
        " ORDER BY c.user_id DESC, c.occurred_at DESC, c.sequence DESC, c.partition_key DESC"
    )
    return query(text, **values)


def listing_key(moment: object, item_id: str, partition: str) -> str:
    """Return the text that a listing sorts by: time, id, partition."""
    shown = moment[:_MAX_TIME_CHARS] if isinstance(moment, str) else ""
    return _BETWEEN.join((shown, item_id, partition))


def token(listing: str, *place: Any) -> str:
    """Return the token that goes on after this place of a listing."""
    return base64.urlsafe_b64encode(orjson.dumps([listing, *place])).decode()


def read_key(listing: str, text: str | None) -> str | None:
    """Return the listing key of a token; raises `UserError` for one of another listing."""
    if text is None:
        return None
    place = _read_token(listing, text)
    if [type(part) for part in place] != [str]:
        raise UserError(_FOREIGN)
    return str(place[0])


def read_place(listing: str, text: str | None) -> Place | None:
    """Return the place in a search; raises `UserError` for a token of another listing."""
    if text is None:
        return None
    place = _read_token(listing, text)
    if [type(part) for part in place] not in ([str, int, str], [type(None), int, str]):
        raise UserError(_FOREIGN)
    return Place(*place)


def _read_token(listing: str, text: str) -> list[Any]:
    place: list[Any]
    try:
        name, *place = orjson.loads(base64.b64decode(text, b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError):
        raise UserError(_FOREIGN) from None
    if name != listing:
        raise UserError(_FOREIGN)
    return place
