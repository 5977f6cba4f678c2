"""What must shrink together, tried on programs that torch exported."""

import pytest
import torch
from torch import nn

from jobs.problems import Problem
from jobs.program import open_program
from jobs.steps import ShrinkStep
from planning.channels import plan_shrink
from tests.programs.conftest import export, store


def step(width=0.5, **more):
    return ShrinkStep(op="shrink", width=width, **more)


@pytest.fixture
def plan(tmp_path):
    """Give a function that plans to shrink a model."""

    def make(model, inputs, *arguments, **more):
        folder = store(export(model.eval(), inputs, is_dynamic=False), tmp_path / "model")
        return plan_shrink(open_program(folder / "model.pt2"), step(*arguments, **more))

    return make


class Chain(nn.Module):
    def __init__(self, *modules, after=lambda x: x):
        super().__init__()
        self.modules_ = nn.Sequential(*modules)
        self.after = after

    def forward(self, x):
        return self.after(self.modules_(x))


def test_a_chain_keeps_its_inputs_and_outputs(plan):
    made = plan(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)), torch.zeros(2, 6))

    assert made.shapes == {"0.weight": (5, 6), "0.bias": (5,), "2.weight": (4, 5)}
    assert [(one.name, one.reason) for one in made.skipped] == [
        ("2.weight", "It is an output of the program.")
    ]


@pytest.mark.parametrize(
    ("channels", "width", "round_to", "kept"),
    [(10, 0.5, 1, 5), (10, 0.5, 4, 8), (10, 0.7, 4, 8), (10, 0.01, 1, 1), (7, 0.5, 1, 4)],
)
def test_the_nearest_number_is_kept_up_to_a_multiple(plan, channels, width, round_to, kept):
    model = nn.Sequential(nn.Linear(6, channels), nn.ReLU(), nn.Linear(channels, 4))

    made = plan(model, torch.zeros(2, 6), width, round_to=round_to)

    assert made.shapes["0.weight"] == (kept, 6)


def test_a_multiple_of_more_than_there_is_changes_nothing(plan):
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))

    with pytest.raises(Problem, match="Of its 10 channels 16 would stay") as caught:
        plan(model, torch.zeros(2, 6), 0.9, round_to=16)

    assert caught.value.code == "nothing_changed"


def test_a_residual_to_the_input_keeps_its_channels(plan):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    made = plan(Sum(), torch.zeros(2, 6))

    assert made.shapes == {"a.weight": (4, 6), "a.bias": (4,), "b.weight": (6, 4)}


def test_channels_that_are_flattened_take_their_places_along(plan):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(6 * 4 * 4, 3))

    made = plan(model, torch.zeros(2, 1, 6, 6))

    [shrinkage] = made.shrinkages
    assert made.shapes["2.weight"] == (3, 3 * 16)
    assert {(cut.tensor, cut.dimension, cut.places) for cut in shrinkage.cuts} == {
        ("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, 16),
    }  # fmt: skip


UNPROVEN = {
    "groups": nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 2)
    ),
    "a group norm": nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 2)
    ),
    "a shuffle": nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(32, 2)
    ),
    "a sum over channels": Chain(nn.Conv2d(4, 8, 1), after=lambda x: x.mean(1)),
    "a softmax over channels": Chain(
        nn.Conv2d(4, 8, 1), nn.Softmax(1), nn.Flatten(), nn.Linear(32, 2)
    ),
    "a part of the channels": Chain(nn.Conv2d(4, 8, 1), after=lambda x: x[:, 1:]),
    "channels beside others": Chain(nn.Conv2d(4, 8, 1), after=lambda x: torch.cat([x, x], 1)),
    "regrouped channels": Chain(nn.Conv2d(4, 8, 1), after=lambda x: x.reshape(2, 4, 2, 2, 2)),
    "an order that changes": Chain(
        nn.Conv2d(4, 8, 1), after=lambda x: x.permute(0, 2, 3, 1).reshape(2, 32)
    ),
}


@pytest.mark.parametrize("model", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_what_cannot_be_proven_is_left_alone(plan, model):
    with pytest.raises(Problem) as caught:
        plan(model, torch.zeros(2, 4, 2, 2))

    assert caught.value.code == "nothing_changed"


@pytest.mark.parametrize(
    ("patterns", "shrunk"),
    [
        ({"include": ["0"]}, {"0.weight", "0.bias", "2.weight"}),
        ({"exclude": ["0"]}, {"2.weight", "2.bias", "4.weight"}),
        ({"include": ["*"], "exclude": ["2"]}, {"0.weight", "0.bias", "2.weight"}),
    ],
    # A set's text is another one in every process, and both must find the same tests.
    ids=["include", "exclude", "both"],
)
def test_patterns_name_the_modules_that_make_channels(plan, patterns, shrunk):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    made = plan(model, torch.zeros(2, 6), **patterns)

    assert set(made.shapes) == shrunk
