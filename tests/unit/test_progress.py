"""The agent's memory of what was shipped."""

from pathlib import Path

import pytest

from sessionferry.agent.progress import Progress, Shipped, Totals
from sessionferry.errors import UserError
from sessionferry.identity import SessionKey

KEY = SessionKey("user-123", "p", "s1")
OTHER = SessionKey("user-123", "p", "s2")
SHIPPED = Shipped(3, 1000, 10, "ab", "cd", 1100, 1_700_000_000_000_000_000)


def test_what_was_shipped_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "progress.db"
    memory = Progress(path)
    assert memory.get(KEY, "events") is None
    memory.put(KEY, "events", Path("/x"), SHIPPED)
    spool = memory.spool_id
    memory.close()
    again = Progress(path)
    assert again.get(KEY, "events") == SHIPPED
    assert again.get(KEY, "transcript") is None
    assert again.get(OTHER, "events") is None
    assert again.spool_id == spool
    again.close()


def test_the_last_word_counts_and_can_be_forgotten(tmp_path: Path) -> None:
    memory = Progress(tmp_path / "progress.db")
    memory.put(KEY, "events", Path("/x"), SHIPPED)
    memory.put(KEY, "events", Path("/y"), Shipped(4, 5, 6, "ee"))
    assert memory.get(KEY, "events") == Shipped(4, 5, 6, "ee")
    memory.forget(KEY, "events")
    assert memory.get(KEY, "events") is None
    memory.close()


def test_totals_sum_up_all_files(tmp_path: Path) -> None:
    memory = Progress(tmp_path / "progress.db")
    assert memory.totals() == Totals(0, 0, 0)
    memory.put(KEY, "events", Path("/x"), SHIPPED)
    memory.put(OTHER, "metadata", Path("/y"), Shipped(0, 50, 0, "ee"))
    assert memory.totals() == Totals(2, 10, 1050)
    memory.close()


def test_together_means_all_or_nothing(tmp_path: Path) -> None:
    memory = Progress(tmp_path / "progress.db")

    def half() -> None:
        with memory.together():
            memory.put(KEY, "events", Path("/x"), SHIPPED)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert memory.get(KEY, "events") is None
    with memory.together():
        memory.put(KEY, "events", Path("/x"), SHIPPED)
        memory.put(OTHER, "events", Path("/x"), SHIPPED)
    assert memory.totals().files == 2
    memory.close()


def test_a_path_that_is_not_text_can_be_remembered(tmp_path: Path) -> None:
    memory = Progress(tmp_path / "progress.db")
    memory.put(KEY, "events", Path("/x\udcff"), SHIPPED)
    assert memory.get(KEY, "events") == SHIPPED
    memory.close()


def test_two_runs_share_one_memory(tmp_path: Path) -> None:
    one = Progress(tmp_path / "progress.db")
    two = Progress(tmp_path / "progress.db")
    one.put(KEY, "events", Path("/x"), SHIPPED)
    assert two.get(KEY, "events") == SHIPPED
    assert one.spool_id == two.spool_id
    one.close()
    two.close()


def test_a_damaged_memory_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "progress.db"
    path.write_bytes(b"not a database, certainly not one" * 50)
    with pytest.raises(UserError, match="Move it away and ship again"):
        Progress(path)
    with pytest.raises(UserError, match="cannot be used"):
        Progress(path / "below" / "a" / "file.db")
