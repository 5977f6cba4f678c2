"""How the suite is run: all of it, by two processes, and what is to be alone by one."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

TESTS = """
import json, os, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(24))
def test_beside_others(number, request):
    note("beside", number)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(6))
def test_alone(number):
    note("alone", number)

def note(kind, number):
    began = time.monotonic()
    time.sleep(0.05)
    row = [kind, os.environ["PYTEST_XDIST_WORKER"], began, time.monotonic()]
    Path(f"{kind}-{number}.json").write_text(json.dumps(row))
"""


def test_a_test_that_is_to_be_alone_meets_no_other(tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = ["-m", "pytest", "-p", "xdist", "-n", "2", "--dist", "worksteal"]

    done = subprocess.run(
        [sys.executable, *command, "-c", os.devnull, "-W", "ignore", "--rootdir", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert "30 passed" in done.stdout, done.stdout + done.stderr
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert {worker for _, worker, _, _ in rows} == {"gw0", "gw1"}
    lonely = [row for row in rows if row[0] == "alone"]
    assert len(lonely) == 6
    for one in lonely:
        met = [row for row in rows if row is not one and row[2] < one[3] and one[2] < row[3]]
        assert met == []


def test_make_test_leaves_out_no_test():
    makefile = (ROOT / "Makefile").read_text()
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]

    [program] = re.findall(r"^PYTEST := (.+)$", makefile, flags=re.MULTILINE)

    assert "\ntest: check\n\t$(PYTEST)\n\n" in makefile
    assert program == "OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal"
    assert options["testpaths"] == ["tests"]
    chosen = ("-m", "-k", "--deselect", "--ignore", "-x", "--maxfail")
    assert [word for word in options["addopts"].split() if word.startswith(chosen)] == []
