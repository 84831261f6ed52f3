"""The program can be imported on every system that it is for; `make check` has their types too."""

import ast
from pathlib import Path

import pytest

import sessionferry

SOURCE = Path(sessionferry.__file__).parent
ELSEWHERE = {
    *("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"),
    *("msvcrt", "nt", "winreg", "winsound", "_winapi"),
}
"""Modules that one of Linux, macOS and Windows does not have."""


def imported_at_once(tree: ast.Module) -> set[str]:
    """Name what a module imports when it is imported itself, but for other platforms' branches."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        match node := waiting.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Compare(left=ast.Attribute(attr="platform"))):
                continue
            case ast.Import():
                found |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
        waiting.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_no_module_needs_one_systems_own_to_be_imported(path: Path) -> None:
    assert not imported_at_once(ast.parse(path.read_text(encoding="utf-8"))) & ELSEWHERE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import fcntl", {"fcntl"}),
        ("try:\n    from termios import *\nexcept ImportError:\n    pass", {"termios"}),
        ("class A:\n    import os.path, pwd as p", {"os", "pwd"}),
        ('if sys.platform == "win32":\n    import msvcrt\nelse:\n    import fcntl', set()),
        ("def lock():\n    import fcntl", set()),
    ],
)
def test_imports_of_a_function_or_of_one_platform_wait(text: str, found: set[str]) -> None:
    assert imported_at_once(ast.parse(text)) == found
