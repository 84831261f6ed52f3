"""What the configuration lets leave this machine: the gate's rules, put together."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from sessionferry.agent.discover import Source
from sessionferry.agent.filters import STRIPPED, Kinds, Places
from sessionferry.agent.gate import Checked, Passed
from sessionferry.agent.redaction import Redactor
from sessionferry.agent.rules import RULE_NAMES
from sessionferry.batch import is_blank
from sessionferry.config import Config
from sessionferry.errors import UserError
from sessionferry.host import redaction_key
from sessionferry.settings import Settings


class Policy:
    """A gate of three parts, in this order: places, kinds, redaction; each may be absent."""

    def __init__(
        self, places: Places, kinds: Kinds | None = None, redactor: Redactor | None = None
    ) -> None:
        self._places = places
        self._kinds = kinds if kinds and kinds.version else None
        self._redactor = redactor
        parts = {"kinds": self._kinds, "redaction": redactor}
        self.rules = " ".join(f"{name}:{part.version}" for name, part in parts.items() if part)

    def admits(self, source: Source) -> bool:
        """Whether anything of this file may leave."""
        return self._places.admit(source)

    def lines(self, source: Source, piece: bytes) -> Passed:
        """Pass whole lines, without those that are dropped, payloads and secrets."""
        kept, filtered, stripped = self._kept(source, piece)
        clean, counts = self._redacted(kept)
        return Passed(clean, filtered, _counted(counts, stripped))

    def tail(self, source: Source, rest: bytes) -> Passed:
        """Pass an unterminated end: also without a secret that is cut off there."""
        kept = self._kinds.keep_torn(source.format, rest) if self._kinds else rest
        if not kept or self._redactor is None:
            return Passed(kept or b"")
        clean, counts = self._redactor.redact_torn(kept)
        return Passed(clean, 0, counts)

    def metadata(self, source: Source, payload: bytes) -> Passed:  # noqa: ARG002
        """Pass a metadata file without secrets."""
        clean, counts = self._redacted(payload)
        return Passed(clean, 0, counts)

    @classmethod
    def of(cls, config: Config, key: Callable[[], bytes]) -> "Policy":
        """Return what a configuration says; `key` is asked for only where secrets are redacted.

        Raises `UserError` for a rule that does not exist, or a pattern that cannot be used.
        """
        chosen, redact = config.filter, config.redact
        places = Places(
            include_projects=chosen.include_projects,
            exclude_projects=chosen.exclude_projects,
            include_paths=chosen.include_paths,
            exclude_paths=chosen.exclude_paths,
        )
        kinds = Kinds(drop=chosen.drop, sample=chosen.sample, strip_raw=chosen.strip_raw)
        if unknown := set(redact.off) - set(RULE_NAMES):
            raise UserError(f"redact.off: there is no rule {min(unknown)!r}.")
        own = [(rule.name, rule.pattern) for rule in redact.rules]
        redactor = Redactor(key(), off=redact.off, own=own) if redact.enabled else None
        return cls(places, kinds, redactor)

    def _kept(self, source: Source, piece: bytes) -> tuple[bytes, int, int]:
        if self._kinds is None:
            return piece, 0, 0
        kept: list[bytes] = []
        filtered = stripped = 0
        for line in piece.removesuffix(b"\n").split(b"\n"):
            if is_blank(line):
                kept.append(line + b"\n")
                continue
            part = self._kinds.keep(source.format, line)
            if part is None:
                filtered += 1
            else:
                kept.append(part[0] + b"\n")
                stripped += part[1]
        return b"".join(kept), filtered, stripped

    def _redacted(self, data: bytes) -> tuple[bytes, Counter[str]]:
        return self._redactor.redact(data) if self._redactor else (data, Counter())


def gate_of(settings: Settings, *, lasts: bool = True) -> Checked:
    """Return the gate that the configuration file describes; raises `UserError`.

    One that does not `last` writes no key where there is none.
    """
    key = partial(redaction_key, settings.identity, lasts=lasts)
    return Checked(Policy.of(settings.file(), key))


def _counted(counts: Counter[str], stripped: int) -> Counter[str]:
    return counts + Counter({STRIPPED: stripped}) if stripped else counts
