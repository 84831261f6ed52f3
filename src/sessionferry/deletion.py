"""Deleting a session, and lifting that again.

A deleted session keeps a tombstone in its head, which late messages, replays and spools cannot
pass. Deletes come through this module in process, never from a fleet's queue.
"""

from sessionferry import counting, head_store, heads, projection
from sessionferry.archive import Archive
from sessionferry.batch import utc_now
from sessionferry.errors import UserError
from sessionferry.heads import Head
from sessionferry.identity import SessionKey, session_folder
from sessionferry.store import Store


async def delete_session(store: Store, archive: Archive, key: SessionKey) -> Head:
    """Put a tombstone on a session, then remove its documents, entries and archived bytes.

    May be repeated at any time: what an interrupted deletion left is removed by the next.
    """
    deleted_at = utc_now()
    head = await head_store.change_head(store, key, lambda head: _begin(head, deleted_at))
    head = await head_store.sweep(store, head)
    await store.clear_quarantine(key.partition_key)
    await archive.delete_folder(session_folder(key))
    await counting.recover(store, archive, head, utc_now())
    head = await head_store.change_head(store, key, lambda head: _finished(head, is_finished=True))
    await projection.project(store, archive, head, "")
    return head


async def undelete_session(store: Store, archive: Archive, key: SessionKey) -> Head:
    """Lift a tombstone, so that the session can be sent again; what was deleted stays deleted.

    Raises `UserError` when the session is not deleted, or its deletion has not finished.
    """

    def lift(head: Head) -> Head:
        if head.tombstone is None:
            raise UserError(f"Session {key.session_id} is not deleted.")
        if not head.tombstone.finished:
            raise UserError("The deletion has not finished yet; delete again, then undelete.")
        if head.dirty:
            until = max(mark.until for mark in head.dirty)
            raise UserError(
                f"Somebody was still writing when it was deleted; after {until} delete again, then"
                " undelete."
            )
        return head.model_copy(update={"tombstone": None})

    head = await head_store.change_head(store, key, lift)
    await projection.project(store, archive, head, "")
    return head


def _begin(head: Head, deleted_at: str) -> Head:
    # A repeated deletion forbids to undelete until it ends: it might remove what was sent anew.
    return _finished(heads.delete(head, deleted_at), is_finished=False)


def _finished(head: Head, *, is_finished: bool) -> Head:
    if head.tombstone is None:
        return head
    tombstone = head.tombstone.model_copy(update={"finished": is_finished})
    return head.model_copy(update={"tombstone": tombstone})
