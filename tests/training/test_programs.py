"""Programs trained beside the plain PyTorch modules that they were exported from."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.problems import Problem
from jobs.program import open_program
from tests.programs.conftest import MODELS, export, store, store_kind
from tests.training.conftest import finetune_step
from training.objectives import loss_sum, task_of
from training.programs import TrainedProgram
from training.rows import rows_of

ROWS = 32
CLASSES = {"residual": 5, "pooled": 3, "encoder": 4}


def save(path, **fields):
    with path.open("wb") as file:
        np.savez(file, **{name: np.asarray(values) for name, values in fields.items()})
    return path


def rows_of_all(trainable, dataset, step):
    return [row for batch in trainable.batches(dataset, step) for row in rows_of(batch)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Give a function that stores a program of a kind once, and copies its model each time."""

    @cache
    def keep(kind, **options):
        return store_kind(tmp_path_factory.mktemp("stored"), kind, **options)

    def give(kind, **options):
        folder, model = keep(kind, **options)
        return folder, copy.deepcopy(model)

    return give


@pytest.fixture
def data(tmp_path):
    """Give a function that draws rows for a kind of program, and writes them as a data set."""

    def draw(kind, labels=None, rows=ROWS):
        torch.manual_seed(1)
        inputs = MODELS[kind][1](rows)
        labels = torch.randint(CLASSES[kind], (rows,)) if labels is None else labels
        name = {"residual": "image", "pooled": "sound"}.get(kind, "ids")
        return save(tmp_path / "rows", **{name: inputs}, labels=labels), inputs, labels

    return draw


def accumulated(loop):
    """Give the gradients of all rows, some of them at a time."""
    loop._gradients(np.arange(len(loop.rows.store)))
    return {name: parameter.grad for name, parameter in loop.parameters.items()}


def largest_difference(found, model):
    """Give the largest norm of a difference of gradients, by the norm of the right one."""
    right = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == right.keys()
    return max(float((found[n] - g).norm() / g.norm().clamp(min=1e-9)) for n, g in right.items())


@pytest.mark.parametrize(
    ("kind", "size", "decomposed"),
    [
        *(("residual", size, False) for size in (1, 2, 3, 8, 32)),
        *((kind, 3, False) for kind in ("pooled", "encoder")),
        *((kind, 3, True) for kind in CLASSES),
    ],
)
def test_gradients_of_micro_batches_are_those_of_the_whole_batch_in_plain_pytorch(
    stored, data, make_loop, kind, size, decomposed
):
    folder, model = stored(kind, decomposed=decomposed)
    dataset, inputs, labels = data(kind)
    F.cross_entropy(model(inputs), labels).backward()

    loop = make_loop(folder, dataset, size)
    found = accumulated(loop)

    trainable = loop.trainable
    assert trainable.objective == "classification"
    assert trainable.frozen_statistics == (2 if kind == "residual" else 0)
    assert largest_difference(found, model) < 1e-6


def test_a_program_of_a_fixed_number_of_rows_takes_any_number_of_them(stored, data, make_loop):
    folder, model = stored("residual", is_dynamic=False)
    dataset, inputs, labels = data("residual")
    F.cross_entropy(model(inputs), labels).backward()

    # Two rows at a time: three are once two, and once one that stands there twice.
    found = accumulated(make_loop(folder, dataset, 3))

    assert largest_difference(found, model) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_are_trained_in_float32_and_written_as_they_were(
    tmp_path, data, make_loop, dtype
):
    folder, model = store_kind(tmp_path, "residual", dtype=dtype)
    dataset, inputs, labels = data("residual")
    model.float()
    F.cross_entropy(model(inputs.to(dtype).float()), labels).backward()
    loop = make_loop(folder, dataset, 8)

    found = accumulated(loop)

    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert largest_difference(found, model) < 1e-6
    for parameter in loop.parameters.values():
        parameter.data += 1e-2
    loop.trainable.write(tmp_path / "out")
    written = torch.export.load(str(tmp_path / "out/model.pt2")).state_dict
    for name, parameter in model.named_parameters():
        assert torch.equal(written[name], (parameter + 1e-2).to(dtype)), name


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", ["residual", "encoder"])
def test_what_was_not_trained_is_written_as_it_came_to_the_byte(
    tmp_path, stored, data, kind, decomposed
):
    folder, _ = stored(kind, decomposed=decomposed)
    dataset, _, _ = data(kind)

    trainable = TrainedProgram(folder / "model.pt2", dataset, finetune_step(), "cpu")
    trainable.write(tmp_path / "out")

    assert (tmp_path / "out/model.pt2").read_bytes() == (folder / "model.pt2").read_bytes()


def test_a_trained_program_answers_as_the_module_with_the_same_weights(tmp_path, stored, data):
    folder, model = stored("residual")
    dataset, inputs, _ = data("residual")
    step = finetune_step()
    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")

    with torch.no_grad():
        for name, parameter in trainable.trained_parameters(step).items():
            parameter.mul_(1.25)
            model.get_parameter(name).mul_(1.25)
    trainable.write(tmp_path / "out")

    exported = torch.export.load(str(tmp_path / "out/model.pt2"))
    with torch.inference_mode():
        assert torch.allclose(exported.module()(inputs), model(inputs), atol=1e-5)
    for name, buffer in model.named_buffers():
        assert torch.equal(exported.state_dict[name], buffer)


def test_tied_weights_are_one_parameter_with_the_gradients_of_both(
    tmp_path, stored, data, make_loop
):
    folder, model = stored("tied")
    dataset, inputs, labels = data("tied", labels=torch.randn(ROWS, 5, 30))
    F.mse_loss(model(inputs), labels).backward()
    loop = make_loop(folder, dataset, 3)

    found = accumulated(loop)

    assert loop.trainable.objective == "regression"
    # Modules name their parameters once, too.
    [shared] = found.keys() - {"hidden.weight", "hidden.bias"}
    found = {"tokens.weight" if name == shared else name: g for name, g in found.items()}
    assert largest_difference(found, model) < 1e-6
    loop.parameters[shared].data.add_(1)
    loop.trainable.write(tmp_path / "out")
    written = torch.export.load(str(tmp_path / "out/model.pt2")).state_dict
    for name in ("tokens.weight", "logits.weight"):
        assert torch.equal(written[name], model.tokens.weight + 1)


@pytest.mark.filterwarnings("ignore:No complete tensor found")
def test_parameters_that_do_not_lie_in_order_are_written_where_they_lay(tmp_path, data):
    def turn(model):
        model.down.to(memory_format=torch.channels_last)
        model.stem.weight = nn.Parameter(
            model.stem.weight.permute(1, 2, 3, 0).clone().permute(3, 0, 1, 2)
        )

    folder, model = store_kind(tmp_path, "residual", change=turn)
    strides = open_program(folder / "model.pt2").tensors["down.weight"].strides
    assert (
        strides
        == model.down.weight.stride()
        != torch.empty_like(model.down.weight.contiguous()).stride()
    )
    dataset, _, _ = data("residual")
    step = finetune_step()

    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")
    for parameter in trainable.trained_parameters(step).values():
        parameter.data.mul_(2)
    trainable.write(tmp_path / "out")

    written = torch.export.load(str(tmp_path / "out/model.pt2")).state_dict
    for name, parameter in model.named_parameters():
        assert torch.equal(written[name], parameter * 2)
        assert written[name].stride() == parameter.stride()


LEARNED = {
    "whole numbers": ("pooled", "auto", torch.arange(ROWS) % 3, "classification"),
    "floats": ("pooled", "auto", torch.randn(ROWS, 3), "regression"),
    "the step says it": ("pooled", "regression", torch.ones(ROWS, 3).long(), "regression"),
    "an answer for each token": ("tied", "auto", torch.zeros(ROWS, 5, 30).long(), "regression"),
}


@pytest.mark.parametrize(
    ("kind", "said", "labels", "objective"), LEARNED.values(), ids=LEARNED.keys()
)
def test_labels_tell_what_is_learned_where_the_step_does_not(
    stored, data, kind, said, labels, objective
):
    folder, _ = stored(kind)
    dataset, _, _ = data(kind, labels=labels)
    step = finetune_step(objective=said)

    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")

    assert trainable.objective == objective
    rows = rows_of_all(trainable, dataset, step)
    assert len(rows) == ROWS
    fields = {name: torch.stack([row.fields[name] for row in rows]) for name in rows[0].fields}
    task = task_of(objective, fields)
    logits = trainable.logits(task.inputs)
    assert logits.ndim == 2
    assert bool(torch.isfinite(loss_sum(objective, logits, task)))


WRONG = {
    "a class too many": ("auto", torch.arange(ROWS) % 4, r"row 4 is none .* from 0 to 2: 3"),
    "a class below none": ("auto", torch.arange(ROWS) - 1, "row 1 is none"),
    "a choice of floats": ("classification", torch.zeros(ROWS), "one whole number is needed"),
    "too few values": ("auto", torch.zeros(ROWS, 2), r"of \[2\] for each row; .* answers \[3\]"),
    "no number": ("auto", torch.full((ROWS, 3), torch.nan), "row 1 is no finite number"),
}


@pytest.mark.parametrize(("said", "labels", "told"), WRONG.values(), ids=WRONG.keys())
def test_labels_that_are_nothing_that_the_program_answers_are_refused(
    stored, data, said, labels, told
):
    folder, _ = stored("pooled")
    dataset, _, _ = data("pooled", labels=labels)
    step = finetune_step(objective=said)
    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")

    with pytest.raises(Problem, match=told) as caught:
        rows_of_all(trainable, dataset, step)

    assert caught.value.code == "invalid_dataset"


CHOICES = {
    "all": ({}, {"hidden.weight", "hidden.bias", "classes.weight", "classes.bias", "a.bias",
                 "b.weight", "b.bias"}),
    "some": ({"include": ["hidden", "a"]}, {"hidden.weight", "hidden.bias", "a.weight", "a.bias"}),
    "all but some": ({"exclude": ["[ab]", "h*"]}, {"classes.weight", "classes.bias"}),
}  # fmt: skip


@pytest.mark.parametrize(("choice", "names"), CHOICES.values(), ids=CHOICES.keys())
def test_parameters_that_were_frozen_when_exported_stay_so_unless_they_are_named(
    tmp_path, data, choice, names
):
    folder, _ = store_kind(
        tmp_path, "pooled", change=lambda model: model.a.weight.requires_grad_(False)
    )
    dataset, _, _ = data("pooled")
    step = finetune_step(**choice)

    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")
    found = trainable.trained_parameters(step)

    assert set(found) == names
    trained = {id(p) for p in trainable.module.parameters() if p.requires_grad}
    assert trained == {id(parameter) for parameter in found.values()}


def test_a_value_that_the_programs_dtype_cannot_hold_is_named(tmp_path, data):
    folder, _ = store_kind(tmp_path, "pooled", dtype=torch.float16)
    dataset, _, _ = data("pooled")
    step = finetune_step()
    trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")
    trainable.trained_parameters(step)["hidden.bias"].data[3] = 1e5

    with pytest.raises(Problem, match=r"'hidden.bias' .* more than F16 can") as caught:
        trainable.write(tmp_path / "out")

    assert caught.value.code == "training_diverged"


def test_dropout_of_a_program_exported_in_training_mode_is_drawn_again_for_each_run(tmp_path):
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 2))
    folder = store(export(model.train(), torch.zeros(2, 6)), tmp_path / "dropout")
    dataset = save(tmp_path / "rows", input=np.zeros((4, 6), np.float32), labels=np.zeros(4, int))
    trainable = TrainedProgram(folder / "model.pt2", dataset, finetune_step(), "cpu")

    runs = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        runs.append(trainable.logits({"input": torch.ones(4, 6)}))

    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[1])


class InPlace(nn.Module):
    """Convolutions whose activations and sums are written over what they were made of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8 * 16, 4)

    def forward(self, image):
        x = nn.functional.relu(self.norm(self.first(image)), inplace=True)
        y = self.second(x)
        y += x
        y = nn.functional.max_pool2d(nn.functional.relu(y, inplace=True), 2)
        return self.last(self.drop(y).flatten(1))


class LiveTensors(TorchDispatchMode):
    """Knows what was made and is still held, by whomever."""

    def __init__(self):
        super().__init__()
        self._made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return given

    @property
    def nbytes(self):
        return sum(nbytes for held, nbytes in self._made.values() if not held.expired())


@pytest.mark.parametrize("kind", ["residual", "encoder", "in place", "dropout"])
def test_activations_that_are_computed_again_give_the_same_gradients(tmp_path, stored, data, kind):
    if kind in CLASSES:
        folder, _ = stored(kind)
        dataset, _, _ = data(kind)
    else:
        torch.manual_seed(0)
        model = InPlace().eval()
        model.drop.train(kind == "dropout")
        folder = store(export(model, torch.zeros(2, 3, 8, 8)), tmp_path / "model")
        fields = {"image": torch.randn(ROWS, 3, 8, 8), "labels": torch.arange(ROWS) % 4}
        dataset = save(tmp_path / "rows", **fields)
    step = finetune_step()
    held, found = [], []
    for again in (False, True):
        trainable = TrainedProgram(folder / "model.pt2", dataset, step, "cpu")
        assert not again or trainable.checkpoint_activations()
        parameters = trainable.trained_parameters(step)
        rows = [row.fields for row in rows_of_all(trainable, dataset, step)]
        fields = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        task = task_of(trainable.objective, fields)
        torch.manual_seed(0)
        with LiveTensors() as live:
            loss = loss_sum(trainable.objective, trainable.logits(task.inputs), task)
        held.append(live.nbytes)
        loss.backward()
        found.append({name: parameter.grad for name, parameter in parameters.items()})

    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert held[1] < 0.85 * held[0]


def test_activations_stay_where_an_operator_writes_over_what_others_need(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = self.first(x)
            z = torch.sigmoid(y[:, :3].add_(1))
            return self.last(y) + z

    folder = store(export(Shared().eval(), torch.zeros(2, 6)), tmp_path / "model")
    dataset = save(tmp_path / "rows", x=np.zeros((4, 6), np.float32), labels=np.zeros(4, int))
    trainable = TrainedProgram(folder / "model.pt2", dataset, finetune_step(), "cpu")

    assert not trainable.checkpoint_activations()
    assert trainable.logits({"x": torch.zeros(4, 6)}).shape == (4, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_pruned_program_keeps_its_zeros_through_momentum_and_weight_decay(
    tmp_path, data, make_loop, optimizer
):
    def prune(model):
        generator = torch.Generator().manual_seed(0)
        for part in (model.stem, model.depth, model.point, model.down, model.classes):
            drawn = torch.rand(part.weight.shape, generator=generator)
            part.weight[drawn < 0.5] = 0

    folder, model = store_kind(tmp_path, "residual", change=prune)
    dataset, _, _ = data("residual")
    rate = {"sgd": 0.1, "adamw": 0.02}[optimizer]
    loop = make_loop(
        folder, dataset, 5, optimizer=optimizer, momentum=0.9, weight_decay=0.1, steps=100,
        batch_size=12, learning_rate=rate,
    )  # fmt: skip

    losses = [loop.advance(lambda: 0) for _ in range(100)]

    assert losses[-1] < losses[0]
    loop.trainable.write(tmp_path / "out")
    written = torch.export.load(str(tmp_path / "out/model.pt2")).state_dict
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert torch.equal(written[name] == 0, parameter == 0), name
            assert not torch.equal(written[name], parameter)


def test_shares_of_classes_are_not_learned_where_there_are_none(stored, data):
    folder, _ = stored("pooled")
    dataset, _, _ = data("pooled", labels=torch.zeros(ROWS, 3))

    with pytest.raises(Problem, match="regression has no classes") as caught:
        TrainedProgram(folder / "model.pt2", dataset, finetune_step(distill=0.5), "cpu")

    assert caught.value.code == "finetune_unsupported"
