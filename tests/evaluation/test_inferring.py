"""Models run over data sets in batches, beside one big forward of transformers or plain torch."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from evaluation.answer_journal import AnswerJournal
from evaluation.answer_writers import open_writer
from evaluation.folders import TransformersSubject
from evaluation.inferring import AnswerPlace, infer
from evaluation.rechecking import recheck
from evaluation.resident import level_bytes
from jobs.inference import Column
from jobs.inferring import InferStep
from jobs.problems import Problem
from jobs.recipe import Budget
from programs.running import ProgramSubject
from tests.evaluation.conftest import SPECIAL, WORDS
from tests.evaluation.test_datasets import archive_of
from tests.evaluation.test_running import sentences

DATASET = "ds_" + "0" * 64


def step_of(**members):
    return InferStep(op="infer", dataset=DATASET, **members)


def place_in(folder, job="job"):
    folder.mkdir(exist_ok=True)
    return AnswerPlace(folder / "answers", folder / "scratch", job)


@pytest.fixture
def run(tmp_path):
    """Infer, have it checked by reading it again, and give what was found and the file."""
    numbers = itertools.count()

    def run(opener, dataset, budget=None, **members):
        step, place = step_of(**members), place_in(tmp_path / f"run-{next(numbers)}")
        folder, seen = place.folder, []
        limits = Budget(host_memory=budget)
        found = infer(opener, dataset, step, place, limits, lambda *told: seen.append(told))
        assert seen == sorted(seen)
        assert seen[-1] == (found.rows, found.rows)
        again = recheck(opener, dataset, step, folder, found, lambda *_: None)
        assert again.rows == found.rows
        return found, folder / found.file

    return run


def big_batch(texts):
    """All rows at once, padded to the longest, as a tokenizer would give them."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    rows = [torch.tensor([vocabulary[word] for word in text.split()]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def opener_of(folder):
    return partial(TransformersSubject, folder, folder)


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_embeddings_equal_one_big_forward_in_the_order_of_the_rows(
    run, make_folder, write_lines, form, batch_size
):
    folder, model = make_folder("bert")
    texts = sentences(60)
    with torch.no_grad():
        inputs = big_batch(texts)
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = (hidden * mask).sum(1) / mask.sum(1)

    dataset = write_lines(*({"text": text, "label": "any"} for text in texts))
    found, path = run(opener_of(folder), dataset, format=form, batch_size=batch_size)

    if form == "parquet":
        columns = parquet.read_table(path).column("embedding").to_pylist()
        got = torch.tensor(columns)
    else:
        got = load_file(path)["embedding"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (found.output, found.rows, found.format) == ("embeddings", 60, form)
    assert found.tokens == int(inputs["attention_mask"].sum())
    assert found.bytes == path.stat().st_size
    if batch_size != "auto":
        assert found.batch_size == batch_size


def test_a_classifier_gives_its_classes_and_their_names(run, make_folder, write_lines):
    folder, model = make_folder("bert-classifier")
    texts = sentences(20)
    with torch.no_grad():
        expected = model(**big_batch(texts)).logits.softmax(1)

    _, path = run(opener_of(folder), write_lines(*({"text": text} for text in texts)))

    table = parquet.read_table(path)
    probabilities = torch.tensor(table.column("probabilities").to_pylist())
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-5)
    assert table.column("label").to_pylist() == expected.argmax(1).tolist()
    assert table.column("probability").to_pylist() == probabilities.amax(1).tolist()
    assert table.schema.metadata[b"classes"] == b'["bad", "fair", "good"]'


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_language_model_tells_what_follows_and_the_loss_of_each_row(
    run, make_folder, write_lines, name
):
    folder, model = make_folder(name)
    texts = ["cat", *sentences(9)]
    expected = []
    for text in texts:
        ids = big_batch([text])["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0]
        best = logits[-1].softmax(0).max(0)
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]) if len(ids[0]) > 1 else 0
        expected.append((int(best.indices), float(best.values), float(loss)))

    dataset = write_lines(*({"text": text} for text in texts))
    _, path = run(opener_of(folder), dataset)
    _, logits_path = run(opener_of(folder), dataset, output="logits", format="safetensors")

    rows = parquet.read_table(path).to_pylist()
    assert [row["token"] for row in rows] == [token for token, _, _ in expected]
    for row, (_, probability, loss) in zip(rows, expected, strict=True):
        assert row["probability"] == pytest.approx(probability, abs=1e-5)
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
    logits = load_file(logits_path)["logits"]
    assert logits.argmax(1).tolist() == [token for token, _, _ in expected]


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert-mlm", "bert-classifier"])
def test_models_with_heads_give_embeddings_too(run, make_folder, write_lines, name):
    folder, _ = make_folder(name)

    found, _ = run(
        opener_of(folder), write_lines(*({"text": t} for t in sentences(5))), output="embeddings"
    )

    assert [column.shape for column in found.columns] == [(32,)]


def test_images_are_answered_by_name(run, make_folder, tmp_path):
    folder, _ = make_folder("resnet-features")
    images = {f"{i}.png": Image.new("L", (16, 16), 40 * i) for i in range(5)}
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    dataset = archive_of(tmp_path / "images", images)

    _, path = run(opener_of(folder), dataset)

    assert sorted(parquet.read_table(path).column("name").to_pylist()) == sorted(images)
    with pytest.raises(Problem, match="format: parquet"):
        run(opener_of(folder), dataset, format="safetensors")


def test_a_program_gives_what_it_gives(run, make_program_of, tmp_path):
    opener, model, rows = make_program_of()
    path = tmp_path / "rows"
    save_file({"image": rows}, path)

    found, answers = run(opener, path, format="safetensors", batch_size=3)

    with torch.no_grad():
        torch.testing.assert_close(load_file(answers)["logits"], model(rows), atol=1e-5, rtol=1e-5)
    assert found.tokens is None


@pytest.fixture
def make_program_of(tmp_path):
    from tests.programs.conftest import MODELS, export, store

    def make():
        torch.manual_seed(0)
        cls, inputs = MODELS["residual"]
        model = cls().eval()
        folder = tmp_path / "program"
        store(export(model, inputs(2)), folder)
        return partial(ProgramSubject, folder / "model.pt2"), model, inputs(11)

    return make


def test_what_a_model_does_not_give_is_said(run, make_folder, write_lines):
    folder, _ = make_folder("bert-mlm")

    with pytest.raises(Problem, match="ask for another output, such as embeddings"):
        run(opener_of(folder), write_lines({"text": "cat"}), output="predictions")


def test_a_budget_that_is_too_small_is_refused_with_one_that_works(run, make_folder, write_lines):
    folder, _ = make_folder("bert")
    dataset = write_lines(*({"text": text} for text in sentences(40)))
    opener = opener_of(folder)
    opener()

    with pytest.raises(Problem) as caught:
        run(opener, dataset, budget=level_bytes() - 32 * 2**20)
    found, _ = run(opener, dataset, budget=caught.value.extra["smallest_bytes"] + 64 * 2**20)

    assert caught.value.code == "memory_budget_exceeded"
    assert found.headroom_bytes >= 0


def test_answers_larger_than_the_disk_budget_are_refused(tmp_path, make_folder, write_lines):
    folder, _ = make_folder("bert")
    dataset = write_lines(*({"text": text} for text in sentences(12)))

    with pytest.raises(Problem) as caught:
        infer(
            opener_of(folder), dataset, step_of(), place_in(tmp_path), Budget(disk=1000),
            lambda *_: None,
        )  # fmt: skip

    assert caught.value.code == "disk_budget_exceeded"
    assert caught.value.extra["predicted_bytes"] == 12 * 32 * 4


def test_a_row_that_cannot_be_read_is_named(run, make_folder, write_lines):
    folder, _ = make_folder("bert")

    with pytest.raises(Problem, match="Line 2") as caught:
        run(opener_of(folder), write_lines({"text": "cat"}, {"txt": "mat"}))

    assert caught.value.code == "invalid_dataset"


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
def test_an_answer_that_was_changed_is_found(tmp_path, make_folder, write_lines, form):
    folder, _ = make_folder("bert")
    dataset = write_lines(*({"text": text} for text in sentences(12)))
    step, place = step_of(format=form), place_in(tmp_path)
    answers = place.folder
    found = infer(opener_of(folder), dataset, step, place, Budget(), lambda *_: None)
    path = answers / found.file

    def check():
        recheck(opener_of(folder), dataset, step, answers, found, lambda *_: None)

    columns = (Column(name="embedding", dtype="float32", shape=(32,)),)

    def write(values):
        with (
            AnswerJournal(tmp_path / "another", "another", path) as journal,
            open_writer(path, form, columns, len(values), {}, journal, has_names=False) as writer,
        ):
            writer.append({"embedding": values}, None)

    for rows, message in ((11, "holds 11 rows, not 12"), (12, "run alone differs")):
        values = np.zeros((rows, 32), np.float32)
        write(values)
        with pytest.raises(Problem, match=message) as caught:
            check()
        assert caught.value.code == "invalid_artifact"
    values[7, 3] = np.nan
    write(values)
    with pytest.raises(Problem, match="NaN"):
        check()
