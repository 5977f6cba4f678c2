"""The documents tell what the code is; these tests notice when one of them has moved on."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from pydantic import ByteSize
from pydantic_core import PydanticUndefined

from jobs.settings import Settings

ROOT = Path(__file__).parents[1]
ROOMS = (
    "jobs", "planning", "engine", "evaluation", "calibration", "programs", "training", "service",
    "worker", "modelpress", "local",
)  # fmt: skip
MAP = (ROOT / "docs" / "architecture.md").read_text()


def files_of_the_rooms() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_the_map_has_one_line_for_every_file_and_none_for_what_is_gone():
    listed = re.findall(r"^- `([^`]+)` — \S", MAP, flags=re.MULTILINE)

    assert sorted(listed) == sorted(files_of_the_rooms())


def test_the_map_says_what_the_files_say_of_themselves():
    listed = dict(re.findall(r"^- `([^`]+\.py)` — (.+)$", MAP, flags=re.MULTILINE))

    said = {}
    for name in listed:
        docstring = ast.get_docstring(ast.parse((ROOT / name).read_text()))
        said[name] = " ".join(docstring.partition("\n\n")[0].split())
    assert listed == said


def test_every_test_file_stands_where_its_subject_does():
    orphans = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        room, name = path.relative_to(ROOT / "tests").parts[0], path.name
        subject = name.removeprefix("test_")
        if room in ROOMS and not any((ROOT / room).rglob(subject)):
            orphans.append(str(path.relative_to(ROOT)))

    # What is named after a way of working rather than a file says so in its docstring.
    assert [name for name in orphans if not (ROOT / name).read_text().startswith('"""')] == []


def test_every_setting_is_documented_with_its_default():
    rows = {
        name: (default, text)
        for name, default, text in re.findall(
            r"^\| `([A-Z_]+)` \| `?([^|`]*)`? \| ([^|]+) \|$",
            (ROOT / "docs" / "settings.md").read_text(),
            flags=re.MULTILINE,
        )
    }

    expected = {}
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined
        default = field.default
        shown = default.human_readable() if isinstance(default, ByteSize) else str(default)
        expected[name.upper()] = (shown, field.description)
    assert rows == expected


def test_the_changelog_has_an_unreleased_section():
    text = (ROOT / "CHANGELOG.md").read_text()

    assert "## [Unreleased]" in text


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        *[str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))],
    ],
)
def test_relative_links_lead_somewhere(name):
    text = (ROOT / name).read_text()

    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)

    assert [t for t in targets if not (ROOT / name).parent.joinpath(t).exists()] == []


def test_make_targets_that_the_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"`make ([a-z-]+)", path.read_text()))

    assert {target for target in named if f"\n{target}:" not in makefile} == set()


def test_no_file_is_left_out_of_version_control():
    ignored = subprocess.run(
        ["git", "status", "--porcelain", "--ignored", *ROOMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert [line for line in ignored if line.startswith("!!") and "__pycache__" not in line] == []
