"""A fleet on disk that grows while it is shipped."""

from pathlib import Path


def grow(whole: Path, live: Path, share: float) -> None:
    """Let every file of `live` grow to about this share of its bytes, mostly to amid a line."""
    for path in whole.rglob("*.json*"):
        if path.name == "oracle.json":
            continue
        content = path.read_bytes()
        grown = live / path.relative_to(whole)
        grown.parent.mkdir(parents=True, exist_ok=True)
        end = len(content) if path.name == "metadata.json" else round(len(content) * share)
        with grown.open("ab") as file:
            file.write(content[file.tell() : end])
