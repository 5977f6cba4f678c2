"""Inferences that go on where one before was killed, beside one that was not."""

import fcntl
import shutil
from functools import partial
from pathlib import Path

import pytest
import transformers
from PIL import Image

from evaluation import answer_journal, parquet_answers, windows
from evaluation.answer_journal import AnswerJournal, Reached
from evaluation.folders import TransformersSubject
from evaluation.inferring import AnswerPlace, infer
from jobs.inferring import InferStep
from jobs.recipe import Budget
from tests.evaluation.test_datasets import archive_of
from tests.evaluation.test_running import sentences

DATASET = "ds_" + "0" * 64


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Have windows of 7 rows, and groups of two windows' embeddings."""
    monkeypatch.setattr(windows, "_MOST_WINDOW_ROWS", 7)
    monkeypatch.setattr(parquet_answers, "GROUP_BYTES", 2 * 7 * 32 * 4)


def place_in(folder: Path, job: str = "job") -> AnswerPlace:
    folder.mkdir(exist_ok=True)
    return AnswerPlace(folder / "answers", folder / "scratch", job)


class Runs:
    """A model and a data set, and what becomes of them when it is killed."""

    def __init__(self, folder: Path, dataset: Path, scratch: Path, **members: object) -> None:
        self.step = InferStep(op="infer", dataset=DATASET, **members)
        self.folder, self.dataset, self.scratch = folder, dataset, scratch
        self.asked = 0

    def open(self):
        subject = TransformersSubject(self.folder, self.folder)
        infer_batch = subject.infer

        def count(batch, output):
            self.asked += batch.rows
            return infer_batch(batch, output)

        subject.infer = count
        return subject

    def run(self, place: AnswerPlace, on_rows=lambda *_: None):
        self.asked = 0
        found = infer(self.open, self.dataset, self.step, place, Budget(), on_rows)
        return found, (place.folder / found.file).read_bytes()

    def run_and_keep_moments(self, monkeypatch) -> tuple[bytes, list[Path]]:
        """Run to the end, and keep what a kill would leave at many moments, in their order."""
        kept = []

        def keep() -> None:
            kept.append(self.scratch / f"killed-{len(kept)}")
            shutil.copytree(self.scratch / "whole", kept[-1])

        def write(journal: AnswerJournal, reached: Reached) -> None:
            # The answers are written, and the journal does not know yet.
            keep()
            write_line(journal, reached)

        write_line = AnswerJournal.write
        with monkeypatch.context() as patched:
            patched.setattr(AnswerJournal, "write", write)
            _, content = self.run(place_in(self.scratch / "whole"), lambda *_: keep())
        keep()
        return content, kept


@pytest.fixture
def runs(tmp_path, make_folder, write_lines):
    """Sentences in different lengths for a small model."""
    folder, _ = make_folder("bert")
    dataset = write_lines(*({"text": text} for text in sentences(40)))
    return partial(Runs, folder, dataset, tmp_path)


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize(("batch_size", "every"), [("auto", 1), (3, 5)])
def test_a_run_that_is_killed_anywhere_ends_with_the_bytes_of_one_that_was_not(
    runs, monkeypatch, form, batch_size, every
):
    made = runs(format=form, batch_size=batch_size)
    expected, kept = made.run_and_keep_moments(monkeypatch)

    resumed = set()
    for folder in kept[::every]:
        seen = []
        found, content = made.run(place_in(folder), lambda *told, seen=seen: seen.append(told))
        assert content == expected, folder.name
        assert found.rows == 40
        assert seen == sorted(seen)
        resumed.add(found.resumed_at)
        # Of the rows before, one is run for what answers are like, and nothing else.
        left = 40 - (found.resumed_at or 0)
        assert made.asked <= left + (2 if found.resumed_at else 5)
    assert resumed == {None, 7, 14, 21, 28, 35, 40} or every > 1


def test_names_of_images_are_taken_up_too(tmp_path, make_folder, monkeypatch):
    folder, _ = make_folder("resnet-features")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    images = {f"{'x' * i}{i}.png": Image.new("L", (16, 16), 8 * i) for i in range(30)}
    made = Runs(folder, archive_of(tmp_path / "images", images), tmp_path)
    expected, kept = made.run_and_keep_moments(monkeypatch)

    for folder in kept[::3]:
        assert made.run(place_in(folder))[1] == expected


def test_a_line_that_was_cut_short_does_not_count(runs, monkeypatch):
    made = runs()
    expected, kept = made.run_and_keep_moments(monkeypatch)
    journal = kept[-1] / "scratch" / "journal"
    *whole, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole) + last[: len(last) // 2])

    found, content = made.run(place_in(kept[-1]))

    assert (found.resumed_at, content) == (35, expected)


@pytest.fixture
def killed(runs, monkeypatch):
    """A run that was killed with rows in a group and rows that make none yet."""
    made = runs()
    expected, kept = made.run_and_keep_moments(monkeypatch)
    folder = next(
        folder for folder in kept if len(lines_of(folder)) == 1 + 21 // 7 and held_of(folder)
    )
    return made, expected, folder


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "scratch" / "journal").read_bytes().splitlines()


def held_of(folder: Path) -> bytes:
    return (folder / "scratch" / "held").read_bytes()


@pytest.mark.parametrize("gone", ["answers/embeddings.parquet", "scratch/held", "scratch/journal"])
def test_what_is_not_all_there_is_begun_again(killed, gone):
    made, expected, folder = killed
    (folder / gone).unlink()

    found, content = made.run(place_in(folder))

    assert (found.resumed_at, content) == (None, expected)


def test_what_another_job_left_counts_for_nothing(killed):
    made, expected, folder = killed

    found, content = made.run(place_in(folder, job="another"))

    assert (found.resumed_at, content) == (None, expected)


def test_what_was_written_before_the_machine_was_started_counts_for_nothing(
    killed, monkeypatch, tmp_path
):
    made, expected, folder = killed
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr(answer_journal, "_BOOT_ID", tmp_path / "boot")

    found, content = made.run(place_in(folder))

    assert (found.resumed_at, content) == (None, expected)


def test_whoever_still_writes_keeps_its_files_for_itself(killed):
    made, expected, folder = killed
    answers = folder / "answers" / "embeddings.parquet"
    before = answers.read_bytes()

    with (folder / "scratch" / "journal").open("rb") as journal, answers.open("rb") as theirs:
        fcntl.flock(journal, fcntl.LOCK_EX)
        found, content = made.run(place_in(folder))
        assert theirs.read() == before

    assert (found.resumed_at, content) == (None, expected)
