"""Each benchmark runs from beginning to end on something tiny and leaves its tables."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def fill(page, script, options, rows):
    """Run a script on a page with markers, and see that their old text made room for tables."""
    frame = "before\n" + "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in rows)
    page.write_text(frame + "after\n")

    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *options, "--page", str(page)],
        cwd=ROOT,
        check=True,
        # Less than what pytest gives the whole test, so that it is the script that is ended.
        timeout=170,
    )

    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    for name, expected in rows.items():
        section = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
        assert set(expected) <= set(re.findall(r"^\| (.+?) \| .*\d", section, flags=re.MULTILINE))
        assert "Measured on" in section or name == "polls"


@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        (
            "transfer",
            ("--size", "1MB", "--rounds", "1"),
            {"transfer": ("`cp` + fsync", "POST /models, raw body", "the same, its middle half")},
        ),
        (
            "latency",
            ("--rounds", "1"),
            {"latency": ("POST /jobs, JSON: **total**", "… notice"), "polls": ()},
        ),
        (
            "memory",
            ("--size", "4MB", "--rounds", "1"),
            {"memory": ("`cp -r`", "quantize w8a16", "prune 50 %, quantize w8a16")},
        ),
        (
            "resume",
            ("--size", "4MB", "--rounds", "4"),
            {"resume": ("w8a16", "w8a8, 50 % per tensor", "**all**")},
        ),
        (
            "prediction",
            ("--models", "matrices of 32 MB, bf16"),
            {"prediction": ("matrices of 32 MB, bf16",)},
        ),
        (
            "cancels",
            ("--size", "64MB", "--rounds", "2"),
            {"cancels": ("cancel accepted to job ended, s: median, p99, max",)},
        ),
        (
            "strangers",
            ("--requests", "300"),
            {"strangers": ("acme", "zeta", "nobody")},
        ),
        (
            "calibration",
            ("--steps", "2", "--size", "2M", "--rows", "2", "--no-peer", "--methods", "wanda 50 %"),
            {"calibration-quality": ("wanda 50 %",), "calibration-memory": ("wanda 50 %",)},
        ),
        (
            "finetuning",
            ("--layers", "1", "--batch", "2", "--steps", "1", "--share", "1.5", "--no-peer"),
            {"finetuning": ("plain PyTorch, the whole batch", "ours, a budget of 150%")},
        ),
        (
            "recovery",
            ("--steps", "2", "--epochs", "1", "--rows", "16"),
            {"recovery": ("as it came", "pruned", "pruned, taught by the model, w8a8")},
        ),
    ],
)
def test_a_script_fills_the_tables_between_its_markers(tmp_path, script, options, rows):
    fill(tmp_path / "benchmarks.md", script, options, rows)


def test_the_engine_is_compared_and_drawn_beside_its_page(tmp_path):
    rows = ("`cp -r`", "ours, w8a8", "ours, 2:4 + w8a16", "ours, w8a16, as a job")

    options = ("--size", "2M", "--rounds", "1", "--peers")
    fill(tmp_path / "benchmarks.md", "engine", options, {"engine": rows})

    drawn = ET.parse(tmp_path / "engine.svg").getroot()
    titles = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 6
    assert all(re.fullmatch(r"ours, .+: [\d.]+ s, [\d.]+ MB", title) for title in titles)


def test_the_page_has_the_markers_of_every_script():
    text = (ROOT / "docs" / "benchmarks.md").read_text()

    for name in (
        "transfer",
        "latency",
        "polls",
        "memory",
        "resume",
        "prediction",
        "cancels",
        "overload",
        "strangers",
        "calibration-quality",
        "calibration-memory",
        "finetuning",
        "recovery",
        "chaos",
        "chaos-plain",
        "engine",
    ):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
