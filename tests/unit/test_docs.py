"""What the documentation says is true of the code."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sessionferry import batch
from sessionferry.cli.demo import demo
from sessionferry.documents import OUR_KEYS, Document, DocumentBuilder, Position
from sessionferry.errors import FerryError, classify
from sessionferry.heads import Head, StreamHead
from sessionferry.settings import Settings
from sessionferry.simulate import FleetPlan, simulate
from sessionferry.telemetry import METRICS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sessionferry"
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = int | float


def read(*parts: str) -> str:
    """Return a file's text."""
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def own_files() -> list[Path]:
    """Return the project's files: what git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git repository")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def pages() -> list[Path]:
    """Return all pages of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def rows(text: str, first: str) -> list[list[str]]:
    """Return the cells of every table whose first column has this title."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not line.startswith("|---"):
            found.append(cells)
    return found


def code_names(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced examples in a language."""
    return [match[2] for match in FENCE.finditer(text) if match[1] == language]


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return a page's headings as they are linked to."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in pages()
        for target in re.findall(r"\]\(([^)\s:]+)\)", page.read_text(encoding="utf-8"))
    }
    own = {page for page in pages() if page.parent != ROOT and page.parent.name != "decisions"}
    assert not {str(page.relative_to(ROOT)) for page in own - linked}


def test_decisions_have_their_three_parts() -> None:
    for number, page in enumerate(sorted((DOCS / "decisions").glob("*.md")), 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number:04d}: ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            *("Context", "Decision", "Consequences")
        ]


def test_no_file_mentions_the_machine_it_was_written_on() -> None:
    own = re.compile(rb"(?<![\w~.}])/(?:work|root)/")
    for path in own_files():
        assert not own.search(path.read_bytes()), path


# ---------------------------------------------------------------- README


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = {
        target
        for page in pages()
        for block in FENCE.finditer(page.read_text(encoding="utf-8"))
        for target in re.findall(r"^make ([a-z]+)", block[2], re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_the_demo_that_is_shown_is_the_demo(tmp_path: Path) -> None:
    (shown,) = (text for text in blocks(read("README.md"), "") if text.startswith("1. generated"))
    *machines, every = (
        line.split() for line in shown.splitlines() if re.match(r"[a-z0-9-]+ +\d", line)
    )
    counts = [[int(cell.replace(",", "")) for cell in row[1:8]] for row in (*machines, every)]
    assert all(read_ == stored + bad + flying for _, read_, stored, bad, flying, *_ in counts)
    defaults = inspect.signature(demo).parameters
    size, seed = (defaults[name].default.default for name in ("megabytes", "seed"))
    oracle = simulate(tmp_path / "fleet", FleetPlan(seed=seed, target_bytes=size * 1_000_000))
    totals = oracle.totals
    expected = (totals.files, totals.lines, totals.stored, totals.quarantined, 0, totals.truncated)
    assert tuple(counts[-1][:6]) == expected
    assert f"${totals.cost_usd:f} of model usage" in shown


def test_commands_that_pages_name_exist() -> None:
    known = set(commands())
    groups = {name.split()[0] for name in known if " " in name}
    examples = {
        " ".join(words) if words[0] in groups else words[0]
        for page in pages()
        for block in FENCE.finditer(page.read_text(encoding="utf-8"))
        for words in re.findall(
            r"^(?:\S+=\S+ )*(?:\S+/)?ferry ([a-z]+) ?([a-z]*)", block[2], re.MULTILINE
        )
    }
    assert {"ship", "local", "dlq list"} <= examples <= known


# ---------------------------------------------------------------- commands


def commands() -> dict[str, set[str]]:
    """Return every command's options and arguments; those of `ferry` itself under an empty name."""
    import typer.main

    from sessionferry.cli import app

    group = typer.main.get_command(app)
    found = {"": names(group)}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for below, inner in getattr(command, "commands", {"": command}).items():
            found[f"{name} {below}".strip()] = names(inner)
    return found


def names(command: object) -> set[str]:
    """Return what a person may type for a command's parameters."""
    return {
        option
        for parameter in command.params  # type: ignore[attr-defined]
        if parameter.name != "help" and parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_command_and_option_is_described_and_no_other() -> None:
    described: dict[str, set[str]] = {}
    for section in re.split(r"^## ", read("docs/reference/commands.md"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        words = title.split()
        assert words[0] == "ferry"
        name = " ".join(takewhile(str.islower, words[1:]))
        options = [code for row in rows(body, "option") for code in code_names(row[0])]
        described[name] = {code.split()[0] for code in options}
    described[""] -= {"--help"}
    assert described == commands()


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    import typer.main

    from sessionferry.cli import COMMANDS, app

    group = typer.main.get_command(app)
    own = {name: command.help for name, command in group.commands.items()}  # type: ignore[attr-defined]
    assert {name: listed.summary for name, listed in COMMANDS.items()} == {
        name: said.split("\n", 1)[0] for name, said in own.items()
    }


def test_help_imports_no_command() -> None:
    program = (
        "import sys, sessionferry.cli as c; sys.argv[1:] = ['--help']\n"
        "try: c.main()\nexcept SystemExit: pass\n"
        "heavy = {'pydantic', 'azure', 'sqlalchemy', 'rich', 'sessionferry.cli.ship'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ship" in done.stdout


# ---------------------------------------------------------------- settings, errors


def test_every_setting_is_described_and_no_other() -> None:
    described = [
        code_names(row[0])[0] for row in rows(read("docs/reference/settings.md"), "variable")
    ]
    prefix = Settings.model_config["env_prefix"]
    real = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = getattr(alias, "choices", [alias] if alias else [f"{prefix}{name.upper()}"])
        real.append(str(choices[0]))
    assert sorted(described) == sorted(real)


def test_a_settings_default_is_the_one_that_is_described() -> None:
    for row in rows(read("docs/reference/settings.md"), "variable"):
        name = code_names(row[0])[0].removeprefix("FERRY_").lower()
        default = Settings.model_fields[name].default if name in Settings.model_fields else None
        if isinstance(default, str):
            assert row[1] == f"`{default}`"


def test_every_metric_is_described_and_no_other() -> None:
    page = (DOCS / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(ferry_[a-z_]+)` \| (\w+) \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [tuple(metric) for metric in METRICS]


def test_every_error_code_is_described_with_its_class_and_kind() -> None:
    described = [
        (code_names(row[0])[0], code_names(row[1])[0], row[2])
        for row in rows(read("docs/reference/errors.md"), "code")
    ]
    real = [(cls.code, cls.__name__, classify(cls()).value) for cls in errors(FerryError)]
    assert sorted(described) == sorted(real)


def errors(cls: type[FerryError]) -> Iterator[type[FerryError]]:
    """Yield a class and all below it."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == FerryError.__module__:
            yield from errors(below)


def test_every_reason_of_a_quarantined_line_is_described() -> None:
    described = {code_names(row[0])[0] for row in rows(read("docs/reference/errors.md"), "reason")}
    sources = read("src/sessionferry/parsing.py") + read("src/sessionferry/quarantine.py")
    real = set(re.findall(r'Refused\("(\w+)"|CONFLICT = "(\w+)"', sources))
    assert described == {one or other for one, other in real}


# ---------------------------------------------------------------- formats


def test_every_header_field_is_described() -> None:
    text = read("docs/reference/wire-format.md")
    described = [code_names(row[0])[0] for row in rows(text, "field")]
    assert described == list(batch.Header.model_fields)
    assert [code_names(row[0])[0] for row in rows(text, "kind")] == list(batch.KINDS)
    encodings = [code_names(row[0]) for row in rows(text, "value")]
    assert [names[0] for names in encodings if names] == list(batch.ENCODINGS)


def test_the_fields_of_documents_and_heads_are_described() -> None:
    text = read("docs/reference/documents.md")
    line = section(text, "## A line's document")
    described = {name for row in rows(line, "field") for name in code_names(row[0])}
    assert described >= OUR_KEYS
    head = {
        name for row in rows(section(text, "## The head"), "field") for name in code_names(row[0])
    }
    assert head == set(Head.model_fields) | set(StreamHead.model_fields)


def section(text: str, title: str) -> str:
    """Return a page's part from a heading of the second level to the next."""
    return text.partition(f"{title}\n")[2].partition("\n## ")[0]


# ---------------------------------------------------------------- guarantees


def limits() -> list[tuple[str, str]]:
    """Return the table of bounds: name in the code, value as it is written."""
    return [(code_names(r[0])[0], r[1]) for r in rows(read("docs/guarantees.md"), "limit")]


@pytest.mark.parametrize(("name", "value"), limits())
def test_a_bound_has_the_value_that_is_described(name: str, value: str) -> None:
    assert constant(name) == float(value.replace(",", ""))


def constant(name: str) -> NUMBER:
    """Return a constant, or the default of a field, by its name below the package."""
    module, _, attribute = name.rpartition(".")
    if module.endswith(".Limits"):
        defaults = {field.name: field.default for field in dataclasses.fields(batch.Limits)}
        value = defaults[attribute]
    else:
        value = getattr(importlib.import_module(f"sessionferry.{module}"), attribute)
    assert isinstance(value, NUMBER)
    return value


def test_every_bound_of_the_core_is_described() -> None:
    described = {name for name, _ in limits()}
    real = {f"batch.Limits.{field.name}" for field in dataclasses.fields(batch.Limits)}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] in {"local", "simulate", "cli", "store"}:
            continue
        for name in re.findall(r"^(M(?:AX|OST)_\w+)\b", path.read_text(), re.MULTILINE):
            real.add(".".join((*parts, name)))
    assert sorted(real - described) == []


def lines() -> list[tuple[str, str, str]]:
    """Return the table of lines: what it is, the example, the outcome."""
    cells = rows(read("docs/guarantees.md"), "line")
    return [(row[0], code_names(row[1])[0], code_names(row[2])[0]) for row in cells]


@pytest.mark.parametrize(("name", "example", "outcome"), lines(), ids=[row[0] for row in lines()])
def test_a_line_becomes_what_is_described(name: str, example: str, outcome: str) -> None:
    header = batch.Header(
        kind="lines",
        stream="events",
        user_id="u",
        host_id="h",
        project_slug="p",
        session_id="s",
        format="amplifier",
    )
    builder = DocumentBuilder(header, "key", "now")
    built = builder.build(Position(sequence=1, offset=10), example_bytes(example))
    if not isinstance(built, Document):
        assert built.reason == outcome
        return
    facts = built.facts
    found = "repaired" if facts.repaired else "truncated" if facts.truncated else "document"
    assert found == outcome


def example_bytes(example: str) -> bytes:
    """Evaluate sums of bytes literals, each perhaps repeated."""
    parts = []
    for part in example.split(" + "):
        literal, _, times = part.partition(" * ")
        parts.append(ast.literal_eval(literal) * int(times or 1))
    return b"".join(parts)


def test_rules_that_comments_name_are_explained() -> None:
    sources = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    named = set(re.findall(r"\bR[1-9]\b", sources))
    explained = re.findall(r"^\*\*(R[1-9])\. ", read("docs/guarantees.md"), re.MULTILINE)
    assert named <= set(explained)


# ---------------------------------------------------------------- examples


def test_the_batch_made_by_hand_is_a_batch(tmp_path: Path) -> None:
    page = read("docs/guides/publish-by-hand.md")
    (script,) = blocks(page, "bash")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    found = batch.decode((tmp_path / "batch.gz").read_bytes())
    payload = (tmp_path / "session.jsonl").read_bytes()
    assert found.payload == payload
    assert found.header.line_count == 2
    assert f"has {len(payload)} bytes" in page
    assert f"`offset` {len(payload)}" in page
    assert batch.hashlib.sha256(payload).hexdigest() in page


@pytest.mark.parametrize("example", blocks(read("docs/guides/publish-by-hand.md"), "python"))
def test_python_examples_compile_and_import_what_exists(example: str) -> None:
    tree = ast.parse(example)
    compile(tree, "publish-by-hand.md", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


# ---------------------------------------------------------------- architecture


def modules() -> list[Path]:
    """Return the package's files, relative to it."""
    return sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def test_every_module_is_on_the_map() -> None:
    named = set()
    for row in rows(read("docs/architecture.md"), "module"):
        folder, *files = code_names(row[0])
        if not folder.endswith("/"):
            named |= {folder, *files}
            continue
        named |= {folder + name for name in code_names(row[1]) if (SOURCE / folder / name).exists()}
    assert named == {path.as_posix() for path in modules()}


PURE = {
    "parsing",
    *("errors", "identity", "coverage", "batch", "packing", "truncation", "documents", "heads"),
    *("lifecycle", "quarantine", "hosts", "statements", "formats", "preview"),
}


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    top = path.parts[0].removesuffix(".py")
    imported = {name.split(".")[1] for name in imports(SOURCE / path) if "." in name}
    if top in PURE:
        assert imported <= PURE
    if top in {"store", "archive"}:
        assert "ingest" not in imported
    if top == "simulate":
        assert imported <= {"simulate"}
    if top not in {"local", "cli"}:
        assert not imported & {"local", "cli"}


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sessionferry"):
            for alias in node.names:
                inside = node.module == "sessionferry" and not alias.name.startswith("_")
                yield f"sessionferry.{alias.name}" if inside else str(node.module)


# ---------------------------------------------------------------- dependencies


def pins(name: str) -> dict[str, list[Requirement]]:
    """Return what a requirements file pins, by name; a name may have one pin per environment."""
    found: dict[str, list[Requirement]] = {}
    for line in read(name).splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def project() -> dict[str, list[Requirement]]:
    """Return the direct dependencies: of the project, its extras, its groups."""
    document = tomllib.loads(read("pyproject.toml"))
    listed = {
        "project": document["project"]["dependencies"],
        **document["project"]["optional-dependencies"],
        **document["dependency-groups"],
    }
    return {group: [Requirement(text) for text in texts] for group, texts in listed.items()}


def version(pin: Requirement) -> str:
    """Return the one version that a pin names."""
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_each_direct_dependency_is_pinned_to_a_version_that_it_allows(file: str) -> None:
    pinned = pins(file)
    groups = ["project"] if file == "requirements.txt" else list(project())
    for wanted in (requirement for group in groups for requirement in project()[group]):
        # Where versions differ between systems, both files say so in the same words.
        same = [
            pin for pin in pinned[canonicalize_name(wanted.name)] if pin.marker == wanted.marker
        ]
        found = same if wanted.marker else pinned[canonicalize_name(wanted.name)]
        assert found, wanted
        assert all(wanted.specifier.contains(version(pin)) for pin in found), wanted


def test_the_function_app_installs_what_the_project_needs_and_nothing_else() -> None:
    wanted = needed(project()["project"])
    pinned = set(pins("requirements.txt"))
    assert wanted <= pinned
    assert {name for name in pinned - wanted if not only_elsewhere(name)} == set()


def needed(requirements: list[Requirement]) -> set[str]:
    """Follow requirements through what is installed here, as far as they apply here."""
    from importlib import metadata

    found: set[tuple[str, str]] = set()
    open_ends = [(one, extra) for one in requirements for extra in ("", *one.extras)]
    while open_ends:
        requirement, extra = open_ends.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in metadata.requires(name) or []:
            below = Requirement(text)
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                open_ends += [(below, inner) for inner in ("", *below.extras)]
    return {name for name, _ in found}


def only_elsewhere(name: str) -> bool:
    """Whether a package is pinned for other systems or versions only, so that none is here."""
    conditions = [pin.marker for pin in pins("requirements.txt")[name]]
    return all(marker is not None and not marker.evaluate() for marker in conditions)


def test_both_requirements_files_pin_the_same_versions() -> None:
    deployed, developed = pins("requirements.txt"), pins("requirements-dev.txt")
    for name, found in deployed.items():
        assert {version(pin) for pin in found} == {version(pin) for pin in developed[name]}, name


def test_every_dependency_has_a_reason() -> None:
    reasons = rows(read("docs/decisions/0005-dependencies.md"), "dependency")
    named = {row[0].split(" ")[0] for row in reasons}
    groups = project()
    dev = groups.pop("dev")
    assert named == {requirement.name for group in groups.values() for requirement in group}
    text = read("docs/decisions/0005-dependencies.md")
    assert all(requirement.name in text for requirement in dev)
