"""Exported files beside those that a fleet was made of."""

from pathlib import Path

from sessionferry.simulate.oracle import Oracle
from support.stack import Ferry


def check_export(ferry: Ferry, fleet: Path, oracle: Oracle, session_id: str, back: Path) -> None:
    """Export a session into `back`, and compare every file with the one it was, byte by byte."""
    ferry.run("export", session_id, "--to", back)
    paths = [fleet / file.path for file in oracle.files if file.session_id == session_id]
    paths += [
        described for path in paths if (described := path.with_name("metadata.json")).exists()
    ]
    given = {path.name: path.read_bytes() for path in paths}
    found = {path.name: path.read_bytes() for path in (back / session_id).iterdir()}
    assert given
    assert found == given
