"""Everything at once: real jobs on real processes that are killed, stopped and wiped meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = 1

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]


def test_under_fire_nothing_is_lost_doubled_stuck_or_left_behind(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text("<!-- chaos -->\n<!-- /chaos -->\n")

    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--seed", str(SEED), "--jobs", "80",
         "--page", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )  # fmt: skip

    # It tells the seed, what was done when, and how the logs end.
    assert ended.returncode == 0, ended.stderr
    assert "| **lost**: no end, or not known any more | **0** |" in page.read_text()
