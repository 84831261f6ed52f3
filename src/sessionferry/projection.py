"""The `sessions` document: a session's metadata and a projection of its heads.

It is written from the head version that was just stored, and only over a lower one (R9). A session
that was seen in two projects has two heads; its document lists both and shows the newer metadata.
"""

from typing import Any, NamedTuple

import orjson

from sessionferry import truncation
from sessionferry.archive import Archive
from sessionferry.batch import Limits, decode, utc_now
from sessionferry.documents import COSMOS_KEYS
from sessionferry.errors import ItemChanged, PermanentError
from sessionferry.formats.meaning import Usage, cost_text
from sessionferry.heads import Head, Metadata, StreamHead, total_cost
from sessionferry.identity import STREAMS, escape
from sessionferry.store import Store

STATED = (
    *("working_dir", "name", "model", "provider", "git_branch", "tool_version", "agent_name"),
    *("native_session_id", "parent_id", "first_prompt"),
)
"""What lines say about their session, for those whose tool writes no metadata file of its own."""
KEPT_METADATA = (
    *STATED,
    *("created", "bundle", "model", "turn_count", "working_dir", "name", "description"),
    *("parent_id", "trace_id", "agent_name", "child_span", "session_id", "project_slug"),
)
DOCUMENTED_KEYS = frozenset(
    {"id", "user_id", "host_id", "session_id", "project_slug", "_type", "synced_at"}
)
"""Those of our keys that readers of amplifier-session-storage know."""
OUR_KEYS = frozenset(
    {
        *DOCUMENTED_KEYS,
        *("projects", "metadata", "event_count", "message_count", "first_time", "last_time"),
        *("usage", "cost_usd", "deleted", "shadowed", "data_truncated", "payload_ref"),
        *COSMOS_KEYS,
    }
)


class Given(NamedTuple):
    """A metadata file that just came: its hash, and its fields, which need not be read back."""

    sha256: str
    fields: dict[str, Any]


async def project(
    store: Store, archive: Archive, head: Head, host_id: str, given: Given | None = None
) -> None:
    """Bring the session's document up to this head version, unless it is newer already.

    Metadata that no archive keeps is shown only if it is `given`; until then its predecessor is.
    """
    session_id = escape(head.session_id)
    while True:
        item = await store.read_item("sessions", head.user_id, session_id)
        known = item.document if item else {}
        projects = {entry["project_slug"]: entry for entry in known.get("projects", [])}
        mine = projects.get(head.project_slug)
        if mine is None or mine["head_version"] < head.head_version:
            projects[head.project_slug] = _entry(head)
        elif given is None or not _awaits(known, given):
            return
        entries = sorted(projects.values(), key=lambda entry: str(entry["project_slug"]))
        shown, fields = await _metadata_fields(archive, known, entries, given)
        document = render(head, host_id, entries, fields, shown)
        try:
            await store.write_item("sessions", document, item.etag if item else None)
        except ItemChanged:
            continue
        return


def render(
    head: Head,
    host_id: str,
    entries: list[dict[str, Any]],
    fields: dict[str, Any],
    shown: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Lay out the session's document. Pure, but for the time stamp.

    `shown` is the metadata that the fields are from, if it is not the newest.
    """
    alive = [entry for entry in entries if not entry["deleted"]]
    newest = shown or _newest_metadata(entries)
    ours: dict[str, Any] = {
        "id": escape(head.session_id),
        "user_id": head.user_id,
        "host_id": newest["host_id"] if newest and newest["host_id"] else host_id,
        "session_id": head.session_id,
        "project_slug": newest["project_slug"] if newest else entries[0]["project_slug"],
        "_type": "session",
        "synced_at": utc_now(),
        "projects": entries,
        "metadata": newest,
        "deleted": all(entry.get("hidden_at") for entry in alive),
        **_totals(alive),
    }
    document = _lay_over(fields, ours)
    if len(orjson.dumps(document)) > truncation.MAX_DOCUMENT_BYTES:
        kept = {name: fields[name] for name in KEPT_METADATA if _is_small(fields.get(name))}
        document = _lay_over(kept, ours) | {"data_truncated": True}
        document["payload_ref"] = _reference(newest)
    return document


def _reference(newest: dict[str, Any] | None) -> dict[str, Any] | None:
    """Say where the whole metadata file lies, as `archive.hydrate` reads it."""
    if newest is None:
        return None
    place = {name: newest[name] for name in ("archive_key", "length", "sha256")}
    return {**place, "offset": 0}


def _entry(head: Head) -> dict[str, Any]:
    return {
        "project_slug": head.project_slug,
        "partition_key": head.key.partition_key,
        "head_version": head.head_version,
        "deleted": head.tombstone is not None,
        "pinned": head.pinned,
        "hidden_at": head.hidden_at,
        "metadata": head.metadata.model_dump(mode="json") if head.metadata else None,
        "about": _about(head),
        **{name: _stream_entry(head.stream(name)) for name in STREAMS},
    }


def _about(head: Head) -> dict[str, str]:
    """Put together what the lines of both streams say; events know better."""
    stated = head.stream("transcript").about | head.stream("events").about
    about = {name: stated[name].value for name in STATED if name in stated}
    if about.get("parent_id") == head.session_id:
        del about["parent_id"]
    return about


def _stream_entry(state: StreamHead) -> dict[str, Any]:
    return {
        "generation": state.generation,
        "format": state.format,
        "stored": len(state.stored),
        "quarantined": len(state.quarantined),
        "conflicts": len(state.conflicts),
        "truncated": state.truncated,
        "repaired": state.repaired,
        "superseded": state.superseded_lines,
        "missing": len((state.stored | state.quarantined).gaps()),
        "line_bytes": state.line_bytes,
        "tail_bytes": state.tail.length if state.tail else 0,
        "first_time": state.first_time,
        "last_time": state.last_time,
        "usage": state.usage._asdict(),
        "cost_usd": state.cost_usd,
        "lifecycle": state.lifecycle.model_dump(mode="json") if state.lifecycle else None,
    }


def _totals(entries: list[dict[str, Any]]) -> dict[str, Any]:
    streams = [entry[name] for entry in entries for name in STREAMS]
    first = [stream["first_time"] for stream in streams if stream["first_time"]]
    last = [stream["last_time"] for stream in streams if stream["last_time"]]
    return {
        "event_count": sum(entry["events"]["stored"] for entry in entries),
        "message_count": sum(entry["transcript"]["stored"] for entry in entries),
        "first_time": min(first, default=None),
        "last_time": max(last, default=None),
        "usage": {name: sum(stream["usage"][name] for stream in streams) for name in Usage._fields},
        "cost_usd": cost_text(sum(total_cost(stream["cost_usd"]) for stream in streams)),
    }


def _newest_metadata(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    known = [
        entry["metadata"] | {"project_slug": entry["project_slug"]}
        for entry in entries
        if entry["metadata"] and not entry["deleted"]
    ]
    return max(known, key=lambda m: Metadata.model_validate(m).rank, default=None)


def _awaits(known: dict[str, Any], given: Given) -> bool:
    """Whether this metadata is the newest, and its fields are not shown yet."""
    newest = _newest_metadata(known["projects"])
    shown = known.get("metadata")
    if newest is None or newest["sha256"] != given.sha256:
        return False
    return shown is None or shown["sha256"] != given.sha256


async def _metadata_fields(
    archive: Archive, known: dict[str, Any], entries: list[dict[str, Any]], given: Given | None
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return which metadata is shown, and what the session says of itself.

    That is its metadata file, over what its lines say.
    """
    newest, about = _newest_metadata(entries), _shown_about(entries)
    if newest is None or not newest["valid"]:
        return newest, about
    if given is not None and newest["sha256"] == given.sha256:
        return newest, about | given.fields
    shown, before = known.get("metadata"), _shown_about(known.get("projects", []))
    if not newest["archive_key"]:
        own = _without_ours(known).items()
        return shown, about | {k: v for k, v in own if k not in before or before[k] != v}
    if (
        shown
        and shown["archive_key"] == newest["archive_key"]
        and before == about
        and not known.get("data_truncated")
    ):
        return newest, _without_ours(known)
    return newest, about | await _archived_metadata(archive, newest["archive_key"])


def _shown_about(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Choose the project whose lines are shown: the one of the newest metadata, or of activity."""
    alive = [entry for entry in entries if not entry["deleted"]]
    newest = _newest_metadata(entries)
    if newest is not None:
        alive = [entry for entry in alive if entry["project_slug"] == newest["project_slug"]]
    shown = max(alive, key=_last_time, default=None)
    return dict(shown.get("about") or {}) if shown else {}


def _last_time(entry: dict[str, Any]) -> tuple[str, str]:
    times = [entry[name]["last_time"] or "" for name in STREAMS]
    return max(times), entry["project_slug"]


async def _archived_metadata(archive: Archive, key: str) -> dict[str, Any]:
    try:
        body = await archive.get(key)
    except PermanentError:  # the session is being deleted, and its archive with it
        return {}
    limits = Limits(inline_bytes=Limits().claimed_bytes)
    return parse_metadata(decode(body, limits=limits).payload) or {}


def parse_metadata(payload: bytes) -> dict[str, Any] | None:
    """Read a metadata file; None when it is not a JSON object of bounded depth."""
    try:
        fields = orjson.loads(payload.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict) or truncation.too_deep(fields):
        return None
    return fields


def _without_ours(document: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in document.items() if key not in OUR_KEYS}
    shadowed: dict[str, Any] = document.get("shadowed", {})
    return own | shadowed


def _lay_over(fields: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    aside = {k: v for k, v in fields.items() if k in OUR_KEYS and not _stays(k, v, ours)}
    document = {k: v for k, v in fields.items() if k not in OUR_KEYS} | ours
    return document | {"shadowed": aside} if aside else document


def _stays(key: str, value: object, ours: dict[str, Any]) -> bool:
    return key in DOCUMENTED_KEYS and value == ours[key]


def _is_small(value: object) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= 4096
