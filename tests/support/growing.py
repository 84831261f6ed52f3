"""A fleet on disk that grows while it is shipped."""

from pathlib import Path

PIECE_BYTES = 1024 * 1024


def grow(whole: Path, live: Path, share: float) -> None:
    """Let every file of `live` grow to about this share of its bytes, mostly to amid a line."""
    for path in whole.rglob("*.json*"):
        if path.name == "oracle.json":
            continue
        size = path.stat().st_size
        grown = live / path.relative_to(whole)
        grown.parent.mkdir(parents=True, exist_ok=True)
        end = size if path.name == "metadata.json" else round(size * share)
        with path.open("rb") as content, grown.open("ab") as file:
            content.seek(file.tell())
            while file.tell() < end:
                file.write(content.read(min(end - file.tell(), PIECE_BYTES)))
