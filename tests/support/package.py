"""The package that the platform runs: what .funcignore leaves, and what requirements.txt names."""

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pathspec
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = Path(".python_packages") / "lib" / "site-packages"

# Runs the local Functions host over a package, with nothing else importable: -I and -S leave the
# standard library, and of this repository only `sessionferry.local` is lent.
BOOTSTRAP = """
import importlib.util, runpy, sys
from pathlib import Path

package, local, state = map(Path, sys.argv[1:4])
sys.path[:0] = [str(package / "src"), str(package / ".python_packages/lib/site-packages")]
import sessionferry

assert Path(sessionferry.__file__).is_relative_to(package)
spec = importlib.util.spec_from_file_location(
    "sessionferry.local", local / "__init__.py", submodule_search_locations=[str(local)]
)
sys.modules["sessionferry.local"] = importlib.util.module_from_spec(spec)
sys.argv = ["functions_host", "--app", str(package), "--state", str(state)]
runpy.run_module("sessionferry.local.functions_host", run_name="__main__")
"""


def files() -> list[Path]:
    """Return, relative to the project, the files that are packed."""
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".funcignore").read_text().splitlines())
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    present = [name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [Path(name) for name in present if not ignored.match_file(name)]


def pack(folder: Path) -> None:
    """Copy what is packed into a folder."""
    for path in files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)


def install(folder: Path) -> None:
    """Install requirements.txt as the platform does."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet"]
    target = ["--target", str(folder / PACKAGES), "-r", str(folder / "requirements.txt")]
    subprocess.run([*command, *target], check=True, timeout=600)


def link(folder: Path) -> None:
    """Link what requirements.txt names from where it is installed already: the same, but quick.

    A folder that belongs to one distribution is linked whole; `azure` and the like belong to many.
    """
    places: dict[Path, Path] = {}
    owners: dict[Path, set[str]] = defaultdict(set)
    for requirement in _required(folder / "requirements.txt"):
        found = distribution(requirement.name)
        assert requirement.specifier.contains(found.version), requirement
        for file in found.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            for path in (Path(file), *Path(file).parents[:-1]):
                owners[path].add(requirement.name)
                places[path] = Path(str(found.locate_file(path.as_posix())))
    target = folder / PACKAGES
    for path in sorted(owners, key=lambda path: len(path.parts)):
        shared = len(owners[path]) > 1
        if not shared and (len(path.parts) == 1 or len(owners[path.parent]) > 1):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).symlink_to(places[path])


def _required(path: Path) -> Iterator[Requirement]:
    for line in path.read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def command(folder: Path, state: Path) -> list[str]:
    """Return how the package is started, alone."""
    local = ROOT / "src" / "sessionferry" / "local"
    return [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(folder), str(local), str(state)]
