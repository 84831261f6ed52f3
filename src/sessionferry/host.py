"""Who this machine is: a host id and a user id that outlive spools, upgrades and renames.

The identity lies in a small file of its own (`identity.json` in the user's configuration folder).
`host_id` is FERRY_HOST_ID, else the file's. `user_id` is FERRY_USER_ID, else what the enrolment
wrote into the file, else `{login}@{host_id}`.
"""

import getpass
import hashlib
import os
import re
import secrets
import socket
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson

from sessionferry.errors import BadIdentity, FerryError, UserError, refused
from sessionferry.identity import check_part
from sessionferry.settings import Settings
from sessionferry.sharing import patiently

IDENTITY_FILE = "identity.json"
MAX_REWRITTEN = 10_000
"""Rewritten streams that are remembered one by one; beyond, every stream counts as rewritten."""
_EVERY = "*"
REDACTION_FILE = "redaction.json"


class Identity:
    """The ids of this machine, read from (or created in) an identity folder."""

    def __init__(
        self,
        folder: Path,
        *,
        host_id: str | None = None,
        user_id: str | None = None,
        lasts: bool = True,
    ) -> None:
        """Read the ids; where there are none, make them. What does not last is not written."""
        self.path = folder / IDENTITY_FILE
        self._lasts = lasts
        self._file = _read_or_create(self.path) if lasts else _read(self.path) or _fresh()
        try:
            self.host_id = check_part("host_id", host_id or str(self._file["host_id"]))
            own = user_id or self._file.get("user_id") or f"{_login()}@{self.host_id}"
            self.user_id = check_part("user_id", str(own))
        except BadIdentity as error:
            raise UserError(str(error)) from None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Identity":
        """Read the identity that the settings name."""
        return cls(settings.identity, host_id=settings.host_id, user_id=settings.user_id)

    @classmethod
    def as_it_is(cls, settings: Settings) -> "Identity":
        """Read the identity that the settings name, and never write it."""
        own = {"host_id": settings.host_id, "user_id": settings.user_id}
        return cls(settings.identity, **own, lasts=False)

    def knew_spool(self, destination: str, spool_id: str) -> bool:
        """Whether an earlier, other spool for this destination is known, which is lost then.

        The first one stays on record: what a lost spool had shipped may turn up at any later time.
        """
        self._file = _read_or_create(self.path)
        spools = dict(self._file.get("spools", {}))
        if destination in spools:
            return bool(spools[destination] != spool_id)
        self._keep({"spools": spools | {destination: spool_id}})
        return False

    def note_rewritten(self, stream: str) -> None:
        """Remember that a stream that is only appended to began a generation of its own.

        Should its spool be lost, it must not begin at generation 0 again: that would be superseded.
        """
        if self.was_rewritten(stream) or not self._lasts:
            return
        self._file = _read_or_create(self.path)
        named = sorted({*self._file.get("rewritten", ()), _digest(stream)})
        if len(named) > MAX_REWRITTEN:
            named = [_EVERY]
        self._keep({"rewritten": named})

    def was_rewritten(self, stream: str) -> bool:
        """Whether that was noted of a stream."""
        named = self._file.get("rewritten", ())
        return _EVERY in named or _digest(stream) in named

    def _keep(self, news: dict[str, Any]) -> None:
        """Remember what is on disk, and no sooner."""
        _write(self.path, self._file | news)
        self._file |= news


def redaction_key(folder: Path, *, lasts: bool = True) -> bytes:
    """Read this machine's key for the marks of redacted secrets; make it on first use.

    One that does not `last` is made for this process alone, if there is none.

    Without the key nobody can find out from a mark what it stands for. Raises `UserError` for
    one that is damaged, and `TransientError` where the disk is in the way.
    """
    path = folder / REDACTION_FILE
    try:
        return bytes.fromhex(orjson.loads(patiently(path.read_bytes))["key"])
    except FileNotFoundError:
        if not lasts:
            return secrets.token_bytes(32)
        _link_first(path, {"key": secrets.token_hex(32)})
        return redaction_key(folder)
    except OSError as error:
        raise refused(f"The redaction key {path} cannot be read", error) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"The redaction key {path} cannot be read. Repair it, or remove it: then every file "
            "is read again and sent anew, with other marks."
        ) from None


class IdentityContext:
    """The identity of this process, as amplifier-session-storage offers it."""

    _identity: ClassVar[Identity | None] = None

    @classmethod
    def initialize(cls) -> None:
        """Read the identity; create it on this machine's first use."""
        cls._identity = Identity.from_settings(Settings.read())

    @classmethod
    def get_user_id(cls) -> str:
        """Return the user's id."""
        return cls._current().user_id

    @classmethod
    def get_host_id(cls) -> str:
        """Return this machine's id."""
        return cls._current().host_id

    @classmethod
    def _current(cls) -> Identity:
        if cls._identity is None:
            cls.initialize()
        if cls._identity is None:  # initialize() raises rather than leave this
            raise UserError("The identity could not be read.")
        return cls._identity


def machine_fingerprint() -> str:
    """Tell this machine from another one that shares its image: 16 hex characters.

    The boot id differs between running machines even when everything on disk was cloned.
    """
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        try:
            parts.append(Path(name).read_text().strip())
        except OSError:
            continue
    if len(parts) == 1:
        # Neither Windows nor macOS has these; a network card's address tells clones apart too.
        parts.append(hex(uuid.getnode()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_or_create(path: Path) -> dict[str, Any]:
    found = _read(path)
    if found is not None:
        return found
    made = _fresh()
    return made if _link_first(path, made) else _read_or_create(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(patiently(path.read_bytes))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(f"The identity file {path} cannot be read", error) from None
    except orjson.JSONDecodeError as error:
        raise UserError(
            f"The identity file {path} cannot be read ({error}). Repair it, or remove it to get a "
            "new identity; what was sent before stays under the old one."
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("host_id"), str):
        raise UserError(f"The identity file {path} names no host_id.")
    return found


def _fresh() -> dict[str, Any]:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40] or "host"
    return {
        "host_id": f"{name}-{secrets.token_hex(4)}",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _link_first(path: Path, content: dict[str, Any]) -> bool:
    """Write a new file; False when another first user was faster."""
    candidate = _written(path, content)
    try:
        os.link(candidate, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise _not_written(path, error) from None
    finally:
        patiently(lambda: candidate.unlink(missing_ok=True))
    return True


def _write(path: Path, identity: dict[str, Any]) -> None:
    candidate = _written(path, identity)
    try:
        patiently(lambda: candidate.replace(path))
    except OSError as error:
        candidate.unlink(missing_ok=True)
        raise _not_written(path, error) from None


def _written(path: Path, identity: dict[str, Any]) -> Path:
    candidate = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(identity, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            candidate.unlink()
        raise _not_written(path, error) from None
    return candidate


def _not_written(path: Path, error: OSError) -> FerryError:
    return refused(f"The file {path} cannot be written", error)


def _digest(stream: str) -> str:
    return hashlib.sha256(stream.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "user"
