"""Text as agents and tools write it, from a seeded vocabulary."""

import random
from collections import deque
from typing import Final

_REPEATED: Final = 0.3  # share of blocks that were written before
_REMEMBERED: Final = 100  # blocks
_SYLLABLES: Final = (
    "ba be bor cal cre dan del dor eth fen fir gal gri hul ist jo kel lar lin mar mer mo nal nor "
    "ol pan per qui ran rel ros sel sim sor tam tel tor ul van ver vor wen xi yar zen zor"
)
_COMMON: Final = (
    "the a to of and in is that it for on with as this be are from or by not we can which if when "
    "then each one all into only after before same file test line value name type call list set "
    "should now first read write change build check run error result session queue batch store"
)
# Line separators and scripts that break readers who split or count by characters.
_FOREIGN: Final = (
    "Größe und Maß geprüft",
    "日本語の説明文です",
    "naïve café déjà vu",
    "tiếng Việt",
    "مرحبا",
    "ready \U0001f680\U0001f469\u200d\U0001f4bb",
    "first\u2028second",
    "one\u0085two\u2029three",
)
_CODE: Final = (
    '''def {0}_{1}({2}: {3}, *, {4}: int = {n}) -> list[{3}]:
    """{s}"""
    {5} = {2}.{6}({4}=max({4}, {m}))
    if not {5}:
        raise ValueError(f"no {1} in {{{2}!r}}")
    return [{7} for {7} in {5} if {7}.{8} > {n}]
''',
    """export async function {0}{1}({2}: {3}, {4} = {n}): Promise<void> {{
  const {5} = await {6}.{7}({2}, {{ {8}: {m} }});
  if ({5}.length > {4}) {{
    throw new Error(`{s}`);
  }}
}}
""",
    """class {3}:
    def __init__(self, {2}: str, {4}: float = {n}.{m}) -> None:
        self._{2} = {2}
        self._{4} = {4}

    def {6}(self) -> str:
        return "{s}".replace("{7}", self._{2})
""",
)
_OUTPUT: Final = (
    "tests/{0}/test_{1}.py::test_{2}_{4} PASSED  [{n:>3}%]\n",
    "{n}:{m}  warning  '{5}' is never read  {6}/no-{7}\n",
    "-rw-r--r--  1 {0} {1}  {n}{m}  src/{2}/{4}_{5}.py\n",
    "[{n}.{m}] INFO {0}.{1}: {2}={m} {4}='{5}' took {n} ms\n",
    "@@ -{n},{m} +{n},{m} @@ def {0}_{1}\n-    {2} = {4}({n})\n+    {2} = {5}({m})\n",
)


def seeded(*parts: object) -> random.Random:
    """A generator that depends on nothing but its parts."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311  # repeatable, not secret


def hexes(rng: random.Random, digits: int) -> str:
    """Random lower-case hexadecimal digits."""
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


class Vocabulary:
    """The words of a fleet, the same for every session of a seed."""

    def __init__(self, seed: int) -> None:
        rng = seeded(seed, "vocabulary")
        syllables = _SYLLABLES.split()
        self.names = ["".join(rng.choices(syllables, k=rng.randint(2, 3))) for _ in range(600)]
        self.words = _COMMON.split() * 12 + self.names[:200]


class Prose:
    """Writes text with one session's generator."""

    def __init__(self, vocabulary: Vocabulary, rng: random.Random) -> None:
        self._vocabulary = vocabulary
        self._rng = rng
        self._known: deque[str] = deque(maxlen=_REMEMBERED)

    def name(self) -> str:
        """One invented identifier."""
        return self._rng.choice(self._vocabulary.names)

    def sentence(self) -> str:
        """Some words, now and then in another script."""
        words = self._rng.choices(self._vocabulary.words, k=self._rng.randint(6, 18))
        if self._rng.random() < 0.06:
            words.append(self._rng.choice(_FOREIGN))
        return " ".join([words[0].capitalize(), *words[1:]]) + "."

    def paragraph(self) -> str:
        """A few sentences."""
        return " ".join(self.sentence() for _ in range(self._rng.randint(2, 5))) + "\n"

    def code(self) -> str:
        """A snippet of source code."""
        return self._fill(self._rng.choice(_CODE))

    def output(self) -> str:
        """A few lines as tools print them."""
        template = self._rng.choice(_OUTPUT)
        return "".join(self._fill(template) for _ in range(self._rng.randint(2, 8)))

    def about(self, size: int) -> str:
        """Mixed text of some `size` characters."""
        blocks: list[str] = []
        missing = size
        while missing > 0:
            blocks.append(self._block())
            missing -= len(blocks[-1]) + 1
        return "\n".join(blocks)[:size]

    def _block(self) -> str:
        # Agents read the same files again and again; compression ratios depend on it.
        if self._known and self._rng.random() < _REPEATED:
            return self._rng.choice(self._known)
        write = self._rng.choice((self.paragraph, self.code, self.output))
        block = write()
        self._known.append(block)
        return block

    def spoken(self, low: int, high: int) -> str:
        """Plain sentences of some length between two sizes."""
        size = self._rng.randint(low, high)
        text = self.paragraph()
        while len(text) < size:
            text += self.paragraph()
        return text[:size]

    def _fill(self, template: str) -> str:
        names = self._rng.choices(self._vocabulary.names, k=9)
        names[3] = names[3].capitalize()
        n, m = self._rng.randrange(100), self._rng.randrange(1000)
        sentence = self.sentence() if "{s}" in template else ""
        return template.format(*names, n=n, m=m, s=sentence)
