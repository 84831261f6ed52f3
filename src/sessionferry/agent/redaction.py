r"""Taking secrets out of lines before they leave the machine, without breaking their JSON.

A line is never parsed: the rules run on its raw bytes, and what they find is replaced there by a
placeholder that needs no escaping, `[REDACTED:rule#tag]`. So everything else stays as it was, byte
for byte, and what is not JSON is treated as text. Escapes that hide a letter (`s`, `\/`), at
any depth of JSON inside strings, are undone in a view of the line on which the rules run again;
finds are mapped back to the raw bytes.

The tag is keyed (HMAC-SHA-256, 32 bits): the same secret has the same tag on one machine, and who
lacks the machine's key cannot test guesses against it.
"""

import hashlib
import hmac
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sessionferry.agent import linear
from sessionferry.agent.rules import BY_BEGINNING, BY_CONTEXT, BY_SHAPE, RULES_VERSION, Rule
from sessionferry.errors import UserError

MAX_ROUNDS = 8
"""Most passes over a line; each pass takes out what the one before laid bare."""

MAX_SECRET_BYTES = 16 * 1024
"""Longest secret, with what stands before it; bounds the time that a hostile line takes."""

_PLACEHOLDER = re.compile(rb"\[REDACTED(?::[\w#.-]{1,80})?\]")
_MARK = b"[REDACTED:"
_MARK_BYTES = 80
_HIDING = r"\\u00(?:[2-7][0-9A-Fa-f]|0[9aAdD])|\\/"
_HIDDEN = re.compile(rb"\\+(?:u00([2-7][0-9A-Fa-f]|0[9aAdD])|(/))")
_ESCAPE = re.compile(rb"\\+(?:u[0-9A-Fa-f]{4}|.)?", re.DOTALL)
_ESCAPE_BEFORE = re.compile(rb"\\+(?:u[0-9A-Fa-f]{0,3})?\Z")
# Outside of strings JSON has nothing but these.
_BARE_JSON = re.compile(rb"(?:[\s,:{}\[\]]|-?[0-9][0-9.eE+-]*|true|false|null|-?Infinity|NaN)*")
# Completes whatever secret was cut off: digits that every alphabet has, dots, the end of a login.
_FILL = (b"234567" * 11 + b".") * 3 + b"@a"


class RedactionFailed(Exception):
    """A line could not be redacted, so it does not leave the machine."""


class _Find(NamedTuple):
    """A secret in a line: its bytes' place, and the rule that knows it."""

    start: int
    end: int
    rule: str


class Redactor:
    """Takes secrets out of bytes, by fixed rules and a key; the same bytes give the same bytes."""

    def __init__(
        self, key: bytes, *, off: Iterable[str] = (), own: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Compile the rules: all but those that are `off`, and `own` (name, pattern) pairs.

        Raises `UserError` for a pattern that RE2 does not take.
        """
        self._key = key
        disabled = frozenset(off)
        added = tuple(Rule(name, "", _checked(name, pattern), "") for name, pattern in own)
        sets = ((*BY_BEGINNING, *BY_CONTEXT), BY_SHAPE, added)
        chosen = (tuple(rule for rule in rules if rule.name not in disabled) for rules in sets)
        kept = [rules for rules in chosen if rules]
        marks = _marks(rule.name for rules in kept for rule in rules)
        self._sets = [_Rules(rules, marks) for rules in kept]
        self._hiding = linear.compiled(_HIDING)
        self.version = self._fingerprint(disabled, added)

    def redact(self, data: bytes) -> tuple[bytes, Counter[str]]:
        """Return the bytes without secrets, and how many each rule found.

        Lines are treated one by one, so that it does not matter how a file is cut into blocks.
        Raises `RedactionFailed` for what does not come to an end.
        """
        counts: Counter[str] = Counter()
        out: list[bytes] = []
        done = 0
        for start, end in self._suspects(data):
            clean, found = self._redact_line(data[start:end])
            counts += found
            out += (data[done:start], clean)
            done = end
        if not counts:
            return data, counts
        out.append(data[done:])
        return b"".join(out), counts

    def redact_torn(self, data: bytes) -> tuple[bytes, Counter[str]]:
        """Redact a line whose end is not there yet: also a secret that is cut off."""
        whole = [find for find in self._finds(data + _FILL) if find.end > len(data) > find.start]
        first = min(whole, default=None)
        start = _outside_escape(data, first.start) if first else len(data)
        if first is None or start >= len(data):
            return self.redact(data)
        clean, counts = self.redact(data[:start])
        counts[first.rule] += 1
        return clean + self._placeholder(first.rule, data[start:]), counts

    # ------------------------------------------------------------ finding

    def _suspects(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield the places of lines in which a rule, or something that hides letters, was seen."""
        seen = {
            data.rfind(b"\n", 0, place) + 1
            for place in (*self._hits(data), *(m.start() for m in self._hiding.finditer(data)))
        }
        for start in sorted(seen):
            end = data.find(b"\n", start)
            yield start, len(data) if end < 0 else end

    def _hits(self, data: bytes) -> Iterator[int]:
        for rules in self._sets:
            yield from (find.start for find in rules.finds(data))

    def _finds(self, line: bytes) -> list[_Find]:
        """Find all secrets of a line: as it stands, and with hidden letters undone."""
        found = list(self._of_all_rules(line))
        view = _View(line)
        while view.undo():
            found += (
                _Find(view.place(find.start), view.place(find.end), find.rule)
                for find in self._of_all_rules(view.text)
            )
        return _merged(found)

    def _of_all_rules(self, text: bytes) -> Iterator[_Find]:
        for rules in self._sets:
            yield from rules.finds(text)

    # ------------------------------------------------------------ replacing

    def _redact_line(self, line: bytes) -> tuple[bytes, Counter[str]]:
        counts: Counter[str] = Counter()
        for _ in range(MAX_ROUNDS):
            clean, found = self._replace(line, self._finds(line))
            if clean == line:
                return line, counts
            line = clean
            counts += found
        raise RedactionFailed(f"Secrets are still found after {MAX_ROUNDS} passes.")

    def _replace(self, line: bytes, finds: list[_Find]) -> tuple[bytes, Counter[str]]:
        counts: Counter[str] = Counter()
        out: list[bytes] = []
        done = 0
        inside = False
        for find in finds:
            start = max(_outside_escape(line, find.start), done)
            end = _before_escape(line, find.end, start)
            if start >= end:
                continue
            inside ^= _crosses_quote(line[done:start])
            out.append(line[done:start])
            piece, inside = self._without(line[start:end], find.rule, inside=inside)
            counts[find.rule] += piece != line[start:end]
            out.append(piece)
            done = end
        out.append(line[done:])
        return b"".join(out), counts

    def _without(self, secret: bytes, rule: str, *, inside: bool) -> tuple[bytes, bool]:
        """Replace a find, string by string; also say whether it ends inside of one."""
        placeholder = self._placeholder(rule, secret)
        out: list[bytes] = []
        parts = _at_quotes(secret)
        for at, part in enumerate(parts):
            if at:
                out.append(b'"')
                inside = not inside
            if not part or (not inside and _BARE_JSON.fullmatch(part)):
                out.append(part)
            else:
                out.append(placeholder)
        return b"".join(out), inside

    def _placeholder(self, rule: str, secret: bytes) -> bytes:
        plain = _View(secret)
        while plain.undo():
            pass
        tag = hmac.new(self._key, plain.text, hashlib.sha256).hexdigest()[:8]
        return f"[REDACTED:{rule}#{tag}]".encode()

    def _fingerprint(self, off: frozenset[str], own: tuple[Rule, ...]) -> str:
        parts = [str(RULES_VERSION), *sorted(off), "", *(part for rule in own for part in rule[:2])]
        digest = hmac.new(self._key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()
        return f"{RULES_VERSION}-{digest[:16]}"


class _Rules:
    """Several rules as one expression, so that a text is read once for all of them."""

    def __init__(self, rules: tuple[Rule, ...], marks: re.Pattern[bytes]) -> None:
        self._rules = rules
        self._marks = marks
        self._opening = linear.compiled("|".join(rule.opening for rule in rules))
        self._whole = linear.compiled("|".join(rule.pattern for rule in rules))

    def finds(self, text: bytes) -> Iterator[_Find]:
        """Yield what the rules find, but for what was redacted already."""
        place = 0
        while opening := self._opening.search(text, place):
            place = opening.start() + 1
            match = self._whole.match(text, opening.start(), opening.start() + MAX_SECRET_BYTES)
            if match is None:
                continue
            if mark := self._mark_around(text, match.start(match.lastindex)):
                place = mark.end()
                continue
            rule = self._rules[match.lastindex - 1]
            secret = match.group(match.lastindex)
            if _PLACEHOLDER.fullmatch(secret):
                place = match.end()
            # What is no secret by this rule may hold one by another.
            elif rule.check is None or rule.check(match.group(), secret):
                start, place = match.span(match.lastindex)
                yield _Find(start, place, rule.name)

    def _mark_around(self, text: bytes, at: int) -> re.Match[bytes] | None:
        """Return the mark of ours that this place is in: a rule may know its own name."""
        start = text.rfind(_MARK, max(0, at - _MARK_BYTES), at + len(_MARK))
        mark = self._marks.match(text, start) if start >= 0 else None
        return mark if mark and mark.start() <= at < mark.end() else None


def _marks(names: Iterable[str]) -> re.Pattern[bytes]:
    named = "|".join(map(re.escape, names))
    return re.compile(rf"\[REDACTED:(?:{named})#[0-9a-f]{{8}}\]".encode())


class _View:
    """A text with letters that escapes hide, and where each of its bytes came from."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._maps: list[tuple[list[int], list[int]]] = []

    def undo(self) -> bool:
        """Undo one layer of hiding; False when there is none."""
        parts: list[bytes] = []
        ours, theirs = [0], [0]
        size = done = 0
        for match in _HIDDEN.finditer(self.text):
            start, end = match.span()
            letter = b"/" if match[2] else bytes((int(match[1], 16),))
            if letter == b"\n":
                # A line ends at its newline only.
                letter = b"\r"
            parts += (self.text[done:start], letter)
            size += start - done
            ours += (size, size + 1)
            theirs += (start, end)
            size += 1
            done = end
        if not parts:
            return False
        parts.append(self.text[done:])
        self.text = b"".join(parts)
        self._maps.append((ours, theirs))
        return True

    def place(self, at: int) -> int:
        """Return where a byte of the view stands in the original text."""
        for ours, theirs in reversed(self._maps):
            index = bisect_right(ours, at) - 1
            at = theirs[index] + at - ours[index]
        return at


def _checked(name: str, pattern: str) -> str:
    """Check a pattern of the user's own; all of it is the secret."""
    try:
        compiled = linear.compiled(pattern)
    except UserError as error:
        raise UserError(f"The pattern of the rule {name} is not valid: {error}.") from None
    if compiled.groups:
        raise UserError(f"The pattern of the rule {name} has a group; write (?:…) instead of (…).")
    if compiled.match(b""):
        raise UserError(f"The pattern of the rule {name} fits an empty text.")
    return pattern


def _merged(finds: list[_Find]) -> list[_Find]:
    """Join finds that overlap; the name is that of the one that was found first."""
    merged: list[_Find] = []
    order = {id(find): at for at, find in enumerate(finds)}
    best: list[int] = []
    for find in sorted(finds):
        rank = order[id(find)]
        if merged and find.start < merged[-1].end:
            last = merged[-1]
            name = find.rule if rank < best[-1] else last.rule
            best[-1] = min(best[-1], rank)
            merged[-1] = _Find(last.start, max(last.end, find.end), name)
        else:
            merged.append(find)
            best.append(rank)
    return merged


def _outside_escape(line: bytes, at: int) -> int:
    """Move a place inside an escape sequence to the end of that sequence."""
    before = _ESCAPE_BEFORE.search(line, max(0, at - 64), at)
    if before is None:
        return at
    escape = _ESCAPE.match(line, before.start())
    return max(at, escape.end()) if escape else at


def _before_escape(line: bytes, at: int, least: int) -> int:
    """Move a place inside an escape sequence to the start of that sequence."""
    before = _ESCAPE_BEFORE.search(line, max(least, at - 64), at)
    if before is None:
        return at
    escape = _ESCAPE.match(line, before.start())
    return before.start() if escape and escape.end() > at else at


def _at_quotes(text: bytes) -> list[bytes]:
    """Cut at quotes that no backslash escapes."""
    if b'"' not in text:
        return [text]
    parts, start = [], 0
    for match in re.finditer(rb'\\.|(")', text, re.DOTALL):
        if match[1]:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _crosses_quote(text: bytes) -> bool:
    """Whether an odd number of unescaped quotes stands in a text."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return bool(text.count(b'"') % 2)
