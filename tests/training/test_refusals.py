"""What no model can learn, and data that no model takes: refused by what is wrong and where."""

import re

import pytest
import torch
from safetensors.torch import save_file

from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from training.comparing import Pair
from training.verification import check_difference

ROWS = 8
IDS = torch.randint(1, 61, (ROWS, 12), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(ROWS) % 3


@pytest.fixture
def refused(make_folder, train, tmp_path):
    """Train a model on a data set, and give the problem that comes of it."""

    def refused(kind, fields, prepare=None, **choices):
        folder, _ = make_folder(kind, prepare=prepare)
        save_file(fields, tmp_path / "rows")
        with pytest.raises(Problem) as caught:
            train(folder, tmp_path / "rows", **choices)
        return caught.value

    return refused


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"labels": CLASSES + 1}, "label of row 3 .* from 0 to 2: 3"),
        ({"labels": CLASSES - 1}, "label of row 1 .* from 0 to 2: -1"),
        ({"input_ids": IDS.repeat(1, 9)}, "does not take the rows: RuntimeError"),
        ({"input_ids": IDS.float()}, "does not take the rows: RuntimeError"),
        ({"token_type_ids": IDS + 1}, "does not take the rows: IndexError"),
    ],
    ids=["a class too many", "a class below none", "too long", "no tokens", "no types"],
)
def test_rows_that_a_classifier_does_not_take_are_the_data_sets_fault(refused, fields, told):
    problem = refused("bert", {"input_ids": IDS, "labels": CLASSES} | fields)

    assert problem.code == "invalid_dataset"
    assert re.search(told, problem.detail), problem.detail


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.randn(ROWS, 3), r"of \[3\] for each row; the model answers \[1\]"),
        (torch.tensor([0.0] * 4 + [torch.nan] * 4), "label of row 5 is no finite number"),
        (torch.full((ROWS,), 1e300, dtype=torch.float64), "label of row 1 is no finite number"),
    ],
    ids=["several", "no number", "too large"],
)
def test_values_that_are_not_one_for_each_row_are_refused_and_not_stretched(refused, labels, told):
    problem = refused("bert-value", {"input_ids": IDS, "labels": labels})

    assert problem.code == "invalid_dataset"
    assert re.search(told, problem.detail), problem.detail


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("bert-value", {"objective": "classification"}),
        ("bert-value", {"distill": 0.5}),
        ("bert-masked", {"distill": 0.5}),
        ("bert-several", {}),
    ],
)
def test_an_objective_that_a_class_is_not_for_is_refused(refused, kind, choices):
    problem = refused(kind, {"input_ids": IDS, "labels": CLASSES}, **choices)

    assert problem.code == "finetune_unsupported"


def test_labels_say_nothing_to_a_model_of_tokens(make_folder, train, tmp_path):
    folder, _ = make_folder("llama")
    save_file({"input_ids": IDS}, tmp_path / "plain")
    save_file({"input_ids": IDS, "labels": CLASSES - 7}, tmp_path / "labelled")

    losses = [
        [point.loss for point in train(folder, tmp_path / name, f"of {name}")[0].losses]
        for name in ("plain", "labelled")
    ]

    assert losses[0] == losses[1]


def test_rows_are_read_a_few_at_a_time_however_many_a_step_takes(make_folder, train, tmp_path):
    folder, _ = make_folder("llama")
    save_file({"input_ids": IDS.repeat(1, 50)}, tmp_path / "rows")

    training, _ = train(folder, tmp_path / "rows", batch_size=65_536, steps=1)

    assert training.epochs == 1
    # Half a million rows of this length would be refused if they were read together.
    assert training.batch_size == 65_536


def test_rows_in_which_nothing_is_to_be_learned_are_refused(refused):
    one_token = {"input_ids": IDS[:, :1].contiguous()}
    ended = torch.ones_like(IDS)
    ended[-2:, 1:] = 0
    held_out = {"evaluate_every": 1, "evaluation_rows": 2}

    problems = [
        refused("llama", one_token, name="trained", weight_decay=0.1),
        refused("llama", {"input_ids": IDS, "attention_mask": ended}, name="looked", **held_out),
    ]

    assert [problem.code for problem in problems] == ["invalid_dataset"] * 2
    assert "None of the 8 trained rows" in problems[0].detail
    assert "None of the 2 held-out rows" in problems[1].detail


def test_a_weight_that_is_no_number_is_named_and_one_that_is_not_trained_stays_as_it_is(
    refused, make_folder, train, tmp_path
):
    def break_one(model):
        model.bert.embeddings.word_embeddings.weight[60, 3] = torch.nan

    fields = {"input_ids": IDS.clamp(max=59), "labels": CLASSES}
    problem = refused("bert", fields, prepare=break_one, name="all")
    assert problem.code == "non_finite_weight"
    assert "word_embeddings" in problem.detail

    training, output = train(tmp_path / "bert", tmp_path / "rows", include=["classifier"])

    model, artifact = open_checkpoint(tmp_path / "bert"), open_checkpoint(output)
    name = "bert.embeddings.word_embeddings.weight"
    found = Pair(model, artifact).compare(name)
    assert (found.non_finite, found.is_changed) == (1, False)
    check_difference(model.tensors[name], found, None)
    assert training.losses


def test_the_weights_that_came_in_are_not_given_for_the_best(refused):
    held_out = {"evaluate_every": 1, "evaluation_rows": 4, "keep_best": True}

    problem = refused("llama", {"input_ids": IDS}, learning_rate=1.0, **held_out)

    assert problem.code == "nothing_changed"
    assert "before the first step" in problem.detail


def test_held_out_rows_that_are_no_numbers_end_the_training(refused):
    images = torch.randn(ROWS, 3, 16, 16)
    images[-1] = torch.nan
    held_out = {"evaluate_every": 2, "evaluation_rows": 1}

    problem = refused("resnet", {"pixel_values": images, "labels": CLASSES}, **held_out)

    assert problem.code == "training_diverged"
    assert "held-out rows after step 0" in problem.detail


def test_no_more_rows_are_put_together_than_there_are(make_folder, train, tmp_path):
    folder, _ = make_folder("llama")
    save_file({"input_ids": IDS}, tmp_path / "rows")

    training, _ = train(folder, tmp_path / "rows", batch_size=4096, steps=1)

    assert training.micro_batch_size == ROWS
