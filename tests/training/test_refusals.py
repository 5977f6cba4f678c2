"""What no model can learn, and data that no model takes: refused by what is wrong and where."""

import re

import pytest
import torch
from safetensors.torch import save_file

from jobs.problems import Problem

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
