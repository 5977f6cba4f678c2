import errno
import fcntl
import os

import pytest

from engine import journal as module
from engine.journal import Journal, Record, fingerprint_of
from engine.ledger import TensorEntry
from engine.measurements import Threshold

FIRST = Record(
    files={"a.safetensors": 3},
    errors={"w": 0.5},
    placement=1,
    chunks=2,
    passed_bytes=1000,
    steps=[(0.1, 20), (0.2, 0)],
    tensors={"v": TensorEntry(1, 2, 0.1, 1 / 3, 0.5), "w": TensorEntry(1, 1, 0.0, 0.5, 0.25)},
    totals={0: 7},
    ties={0: 7, 1: 3},
    thresholds={0: {"": [Threshold(5, 6)]}},
)
SECOND = Record(
    placement=3,
    passed_bytes=2000,
    steps=[(0.3, 40), (0.4, 10)],
    tensors={"w": TensorEntry(3, 3, 0.25, 0.75, 0.5)},
    totals={0: 9},
    thresholds={0: {"": [Threshold(5, 6), Threshold(77, 1)]}, 1: {"w": [Threshold(8, 9)]}},
)
BOTH = Record(
    files={"a.safetensors": 3},
    errors={"w": 0.5},
    placement=3,
    passed_bytes=2000,
    steps=[(0.3, 40), (0.4, 10)],
    tensors={"v": TensorEntry(1, 2, 0.1, 1 / 3, 0.5), "w": TensorEntry(3, 3, 0.25, 0.75, 0.5)},
    totals={0: 9},
    thresholds={0: {"": [Threshold(5, 6), Threshold(77, 1)]}, 1: {"w": [Threshold(8, 9)]}},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"abc")
    return folder


def reached(path, folder, job="job"):
    with Journal(path, job, folder) as journal:
        return journal.reached


@pytest.fixture
def left(path, folder):
    """A journal of two records, whose writer is gone."""
    (folder / "a.safetensors").unlink()
    with Journal(path, "job", folder) as journal:
        assert journal.reached is None
        journal.write(FIRST)
        journal.write(SECOND)
    (folder / "a.safetensors").write_bytes(b"abc")
    return path


def test_a_journal_says_what_all_its_records_say_together(left, folder):
    assert reached(left, folder) == BOTH


def test_a_journal_that_is_taken_over_says_the_same(left, folder):
    reached(left, folder)

    assert reached(left, folder) == BOTH
    assert left.read_bytes().count(b"\n") == 2


def test_a_journal_that_is_cut_anywhere_counts_as_far_as_it_is_whole(left, folder):
    data = left.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = [len(b"".join(lines[:n])) for n in (2, 3)]

    for length in {*range(0, ends[1], 9), ends[0], ends[0] - 1, ends[1] - 1}:
        left.write_bytes(data[:length])

        expected = FIRST if length >= ends[0] else None
        assert reached(left, folder) == expected, length
        (folder / "a.safetensors").write_bytes(b"abc")


@pytest.mark.parametrize("line", [0, 1, 2])
def test_nothing_counts_from_a_damaged_line_on(left, folder, line):
    lines = left.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"{", b"[", 1)
    left.write_bytes(b"".join(lines))

    assert reached(left, folder) == (FIRST if line == 2 else None)


def test_a_journal_of_another_job_does_not_count(left, folder):
    assert reached(left, folder, job="other") is None
    assert list(folder.iterdir()) == []


def test_a_journal_from_before_the_machine_was_started_does_not_count(
    left, folder, tmp_path, monkeypatch
):
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(module, "_BOOT_ID", boot_id)

    assert reached(left, folder) is None


@pytest.mark.parametrize("content", [b"", b"abcd", None])
def test_a_journal_that_speaks_of_other_files_does_not_count(left, folder, content):
    (folder / "a.safetensors").unlink()
    if content is not None:
        (folder / "a.safetensors").write_bytes(content)

    assert reached(left, folder) is None
    assert list(folder.iterdir()) == []


def test_a_link_is_no_file_of_the_artifact(left, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (folder / "a.safetensors").rename(elsewhere)
    (folder / "a.safetensors").symlink_to(elsewhere)

    assert reached(left, folder) is None
    assert elsewhere.read_bytes() == b"abc"


def test_a_journal_whose_writer_lives_is_not_taken_over_and_its_files_are_let_be(left, folder):
    with left.open("rb") as theirs, (folder / "a.safetensors").open("r+b") as file:
        fcntl.flock(theirs, fcntl.LOCK_EX)

        assert reached(left, folder) is None

        file.write(b"xyz")
    assert list(folder.iterdir()) == []


def test_a_writer_keeps_others_away_until_it_ends(path, folder):
    with Journal(path, "job", folder) as journal:
        journal.write(Record(passed_bytes=1))
        with path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    assert reached(path, folder) == Record(passed_bytes=1)


def test_what_does_not_belong_to_the_artifact_is_removed(left, folder, tmp_path):
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("")
    (folder / "link").symlink_to(tmp_path)

    assert reached(left, folder) == BOTH
    assert [path.name for path in folder.iterdir()] == ["a.safetensors"]
    assert left.exists()


def test_without_a_path_nothing_is_kept_and_nothing_removed(folder, tmp_path):
    with Journal(None, "job", folder) as journal:
        journal.write(FIRST)

    assert journal.reached is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.safetensors", "artifact"]


def test_a_disk_without_room_ends_the_journal_and_not_the_job(path, folder, monkeypatch):
    write = os.write
    room = 1000

    def write_some(file, data):
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[:room])
        room -= written
        return written

    monkeypatch.setattr(module.os, "write", write_some)
    with Journal(path, "job", folder) as journal:
        for passed in range(1, 100):
            journal.write(Record(passed_bytes=passed))
    room = 10_000

    assert 1 < reached(path, folder).passed_bytes < 50


def test_fingerprints_differ_wherever_a_part_does():
    assert fingerprint_of([1, "a"]) == fingerprint_of(iter([1, "a"]))
    assert len({fingerprint_of(parts) for parts in ([1, "a"], ["1", "a"], ["a", 1], [1])}) == 4
