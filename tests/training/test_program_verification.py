"""Trained programs that are not what they should be, each spoilt in one place."""

import json

import numpy as np
import pytest
import torch

from engine.memory import MemoryMeter
from jobs.problems import Problem
from jobs.program import open_program
from jobs.program_archive import FIXED, GRAPH, WEIGHTS_CONFIG, write_archive
from jobs.recipe import parse_recipe
from jobs.training import Training
from programs.values import ProgramFile
from tests.programs.conftest import store_kind
from training.program_reporting import build_program_report
from training.program_verification import verify_trained_program
from training.programs import TrainedProgram

DATASET = f"ds_{'0' * 64}"


def prune(model):
    """Leave half of one weight, and none of another, which is to learn from nothing."""
    model.stem.weight[:, 1] = 0
    model.point.weight.zero_()


def training():
    return Training(
        objective="classification", optimizer="sgd", method="full", rows=2, held_out_rows=0,
        steps=1, epochs=1, batch_size=2, micro_batch_size=1, savings=(), decisions=(),
        trained_parameters=1, weights_held_zero=0, frozen_statistics=2, losses=(),
        rows_per_second=1, optimizer_bytes=0, resident_peak_bytes=1, device_peak_bytes=None,
        seconds=1,
    )  # fmt: skip


@pytest.fixture
def verify(tmp_path):
    """Give a function that trains a program a little, changes the result, and has it verified."""

    def run(change=None, told=None, amount=0.125, **choices):
        folder, _ = store_kind(tmp_path, "residual", dtype=torch.bfloat16, change=prune)
        step = {"op": "finetune", "dataset": DATASET, "steps": 1, **choices}
        recipe, out = parse_recipe({"steps": [step]}), tmp_path / "out"
        data = tmp_path / "rows"
        with data.open("wb") as file:
            np.savez(file, image=np.zeros((2, 3, 8, 8)), labels=np.arange(2))
        trainable = TrainedProgram(folder / "model.pt2", data, recipe.finetune_step, "cpu")
        parameters = trainable.trained_parameters(recipe.finetune_step)
        for name, parameter in parameters.items():
            is_pruned = (parameter == 0) & (name == "stem.weight")
            parameter.data += amount * (parameter.abs() + 1) * ~is_pruned
        trainable.write(out)
        with MemoryMeter() as meter:
            report = build_program_report(folder, out, recipe, training(), meter)
        if change is not None:
            program = open_program(out / "model.pt2")
            file = ProgramFile(program)
            entries = {n: bytearray(file.entry(n)) for n in program.spans if n not in FIXED}
            homes = {name: tensor.entry for name, tensor in program.tensors.items()}
            change(entries, homes)
            write_archive(
                out / "model.pt2",
                lambda writer: [writer.add(name, [raw], len(raw)) for name, raw in entries.items()],
            )
        if told is not None:
            report = told(report)
        found = verify_trained_program(folder, out, recipe, report, lambda _: None)
        return found, report

    return run


def test_a_program_that_was_trained_passes_and_its_report_says_how_far_it_moved(verify):
    verification, report = verify(exclude=["down"])

    assert verification.tensors == 19
    names = {tensor.name for tensor in report.tensors}
    assert names == {f"{n}.{part}" for n in ("stem", "stem_norm", "depth", "point_norm", "classes")
                     for part in ("weight", "bias")} | {"point.weight"}  # fmt: skip
    [stem] = [tensor for tensor in report.tensors if tensor.name == "stem.weight"]
    assert stem.before.sparsity == stem.after.sparsity == pytest.approx(1 / 3)
    assert stem.before.dtype == stem.after.dtype == "BF16"
    assert stem.relative_rmse > 0.1
    assert report.steps[0].tensors_changed == 11
    assert report.artifact.size_ratio == 1


def bits(entries, homes, name):
    return np.frombuffer(entries[homes[name]], np.uint16)


def a_statistic(entries, homes):
    bits(entries, homes, "stem_norm.running_mean")[3] += 1


def a_weight_that_was_left_out(entries, homes):
    bits(entries, homes, "down.bias")[3] += 1


def a_pruned_weight(entries, homes):
    bits(entries, homes, "stem.weight")[9] = 0x3F80


def no_number(entries, homes):
    bits(entries, homes, "classes.bias")[1] = 0x7FC0


def one_more_zero(entries, homes):
    bits(entries, homes, "classes.weight")[7] = 0


def edit(entries, name, change):
    document = json.loads(entries[name])
    change(document)
    entries[name] = bytearray(json.dumps(document, separators=(",", ":")).encode())


def another_graph(entries, homes):
    def change(document):
        nodes = document["graph_module"]["graph"]["nodes"]
        [node] = [node for node in nodes if node["target"].endswith("hardswish.default")]
        node["target"] = "torch.ops.aten.sigmoid.default"

    edit(entries, GRAPH, change)


def another_place(entries, homes):
    def change(document):
        one, other = (document["config"][n] for n in ("stem_norm.weight", "stem_norm.bias"))
        one["path_name"], other["path_name"] = other["path_name"], one["path_name"]

    edit(entries, WEIGHTS_CONFIG, change)


def nothing_of(name):
    def told(report):
        kept = tuple(tensor for tensor in report.tensors if tensor.name != name)
        return report.model_copy(update={"tensors": kept})

    return told


CASES = {
    "a statistic that moved": ({"change": a_statistic}, "'stem_norm.running_mean': has changed"),
    "a weight that was not to be trained": (
        {"change": a_weight_that_was_left_out, "exclude": ["down"]}, "'down.bias': has changed",
    ),
    "a pruned weight that came back": ({"change": a_pruned_weight}, "'stem.weight': has 1 weights"),
    "a weight that is no number": ({"change": no_number}, "'classes.bias': holds a NaN"),
    "another share of zeros": ({"change": one_more_zero}, "'classes.weight': has another share"),
    "another operator": ({"change": another_graph}, "holds other entries"),
    "tensors that changed places": ({"change": another_place}, "is not the program's"),
    "a tensor that nobody tells of": ({"told": nothing_of("depth.bias")}, "'depth.bias': differs"),
}  # fmt: skip


@pytest.mark.parametrize(("spoilt", "told"), CASES.values(), ids=CASES.keys())
def test_a_trained_program_that_is_not_what_is_said_fails(verify, spoilt, told):
    with pytest.raises(Problem) as caught:
        verify(**spoilt)

    assert caught.value.code == "invalid_artifact"
    assert told in caught.value.detail


def test_a_training_that_moved_nothing_fails(verify):
    with pytest.raises(Problem) as caught:
        verify(amount=0)

    assert caught.value.code == "nothing_changed"
