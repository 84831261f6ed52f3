"""`ferry` with variables of its own, for what starts programs and can set none."""

import os
import subprocess
import sys
from pathlib import Path


def test_variables_come_first_and_the_rest_is_the_command(tmp_path: Path) -> None:
    variables = [f"FERRY_CONFIG={tmp_path / 'a & b=c.toml'}", "FERRY_RATE_KB="]
    ran = subprocess.run(
        [sys.executable, "-m", "sessionferry.cli.env", *variables, "agent", "config"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"FERRY_CONFIG": "elsewhere"},
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"ferry: There is no configuration {tmp_path / 'a & b=c.toml'};")


def test_a_process_without_outputs_works_on(tmp_path: Path) -> None:
    """As pythonw.exe starts one: `sys.stdout` is None."""
    program = (
        "import runpy, sys\n"
        "sys.stdout = sys.stderr = None\n"
        "sys.argv[1:] = ['ship', '--dry-run', '--format', 'jsonl', sys.argv[1]]\n"
        "runpy.run_module('sessionferry.cli.env', run_name='__main__')\n"
    )
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    own = {"FERRY_DATA": str(tmp_path / "data"), "FERRY_IDENTITY": str(tmp_path / "identity")}
    command = [sys.executable, "-c", program]
    right = subprocess.run([*command, str(tmp_path)], env=os.environ | own, check=False)
    wrong = subprocess.run([*command, str(tmp_path / "b")], env=os.environ | own, check=False)
    assert (right.returncode, wrong.returncode) == (0, 2)
