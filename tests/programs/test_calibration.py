"""Programs pruned by wanda, beside the norms that hooks on the exported module find."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs.problems import Problem
from jobs.program import open_program
from jobs.recipe import parse_recipe
from planning.program_limits import refuse_unsupported
from planning.program_plan import make_program_plan
from programs.calibration import calibrate_program
from programs.pipeline import compress_program
from programs.values import ProgramFile
from programs.verification import verify_program
from tests.programs.conftest import MODELS

SECTION = {"dataset": "ds_" + "0" * 64, "rows": 7, "batch_size": 3}
WANDA = {"op": "prune", "method": "wanda", "sparsity": 0.5}


@pytest.fixture
def calibrate(tmp_path):
    """Prune a stored program by data, and verify it; give the artifact and what was found."""

    def run(folder, rows, *steps):
        recipe = parse_recipe({"steps": list(steps) or [WANDA], "calibrate": SECTION})
        [name] = open_program(folder / "model.pt2").inputs
        save_file({name: rows}, tmp_path / "rows")
        work, out = tmp_path / "work", tmp_path / "artifact"
        out.mkdir()
        found = calibrate_program(folder, tmp_path / "rows", recipe, work, lambda _: None)
        report, kept = compress_program(
            folder, out, recipe, on_progress=lambda _: None, calibrated=work
        )
        verify_program(folder, out, recipe, report, kept, on_progress=lambda _: None)
        artifact = open_program(out / "model.pt2")
        plan = make_program_plan(open_program(folder / "model.pt2"), recipe)
        assert (out / "model.pt2").stat().st_size == plan.artifact_bytes
        return artifact, found, report

    return run


def rows_of(kind, count):
    torch.manual_seed(5)
    return MODELS[kind][1](count)


def norms_of(model, rows):
    """Give what each weight meets, [C, I], from hooks on its module."""
    met = {}

    def look(name, module, given):
        met[name] = meets(module, given[0].double())

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.register_forward_pre_hook(lambda m, given, name=name: look(name, m, given))
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        model(rows)
    torch.backends.mha.set_fastpath_enabled(was)
    return met


def meets(module, given):
    channels = module.weight.shape[0]
    if isinstance(module, nn.Linear):
        return given.flatten(0, -2).norm(dim=0).expand(channels, -1)
    if isinstance(module, nn.Conv1d):
        patches = nn.functional.unfold(
            given[:, :, None], (1, *module.kernel_size), padding=(0, *module.padding),
            stride=(1, *module.stride),
        )  # fmt: skip
    else:
        patches = nn.functional.unfold(
            given, module.kernel_size, padding=module.padding, stride=module.stride
        )
    norms = patches.transpose(0, 1).flatten(1).norm(dim=1).reshape(module.groups, -1)
    return norms.repeat_interleave(channels // module.groups, 0)


def kept_by(scores, structure="unstructured", positions=1):
    """Say which half of each channel, or of each group of four inputs, is kept."""
    if structure == "unstructured":
        order = scores.argsort(dim=1)[:, round(scores.shape[1] / 2) :]
        return torch.zeros(scores.shape).scatter_(1, order, 1).bool()
    grouped = scores.reshape(len(scores), -1, 4, positions)
    best = grouped.argsort(dim=2)[:, :, 2:]
    return torch.zeros(grouped.shape).scatter_(2, best, 1).bool().reshape(scores.shape)


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", ["residual", "pooled", "encoder"])
def test_those_weights_stay_whose_magnitude_times_norm_is_largest(
    make_program, calibrate, kind, decomposed
):
    folder, model = make_program(kind, decomposed=decomposed)
    rows = rows_of(kind, 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    met = norms_of(model, rows[:7])

    include = [name for name in met if "out_proj" not in name]
    artifact, found, report = calibrate(folder, rows, WANDA | {"include": include})

    assert (found.rows, found.blocks, found.tokens) == (7, 0, None)
    file = ProgramFile(artifact)
    for name in include:
        weight = before[f"{name}.weight"].flatten(1)
        kept = kept_by(weight.abs().double() * met[name])
        values = torch.from_numpy(file.read(f"{name}.weight").copy()).flatten(1)
        assert torch.equal(values, torch.where(kept, weight, 0)), name
    [step] = report.steps
    assert (step.method, step.tensors_changed) == ("wanda", len(include))


def test_half_floats_are_pruned_as_often(make_program, calibrate):
    folder, _ = make_program("pooled", dtype=torch.bfloat16)

    artifact, *_ = calibrate(folder, rows_of("pooled", 7))

    for name in ("a", "b", "hidden"):
        weight = artifact.tensors[f"{name}.weight"].spec
        values = ProgramFile(artifact).read_floats(f"{name}.weight").reshape(weight.shape[0], -1)
        assert ((values == 0).sum(1) == values.shape[1] // 2).all(), name


def test_groups_of_inputs_are_compared_at_each_place_of_a_kernel(make_program, calibrate):
    folder, model = make_program("pooled")
    rows = rows_of("pooled", 7)
    weight = model.b.weight.detach().flatten(1).clone()
    met = norms_of(model, rows)
    step = {"op": "prune", "method": "wanda", "structure": "2:4", "include": ["b"]}

    artifact, *_ = calibrate(folder, rows, step)

    values = torch.from_numpy(ProgramFile(artifact).read("b.weight").copy()).flatten(1)
    kept = kept_by(weight.abs().double() * met["b"], "2:4", positions=3)
    assert torch.equal(values, torch.where(kept, weight, 0))


def test_what_is_pruned_by_data_is_rounded_in_the_same_pass(make_program, calibrate):
    folder, _ = make_program("residual")

    artifact, _, report = calibrate(
        folder, rows_of("residual", 7), WANDA, {"op": "quantize", "scheme": "w8a8"}
    )

    assert [step.method for step in report.steps] == ["wanda", "w8a8"]
    assert artifact.tensors["depth.weight"].spec.dtype == "I8"
    zeros = (ProgramFile(artifact).read("down.weight").reshape(24, -1) == 0).sum(1)
    assert (zeros >= 16 * 9 // 2).all()


def test_rows_that_fill_no_batch_of_a_fixed_size_are_left_over(make_program, calibrate):
    folder, model = make_program("pooled", is_dynamic=False)
    rows = rows_of("pooled", 7)
    weight = model.hidden.weight.detach().clone()
    met = norms_of(model, rows[:6])

    artifact, found, _ = calibrate(folder, rows)

    assert found.rows == 6
    values = torch.from_numpy(ProgramFile(artifact).read("hidden.weight").copy())
    assert torch.equal(values != 0, kept_by(weight.abs().double() * met["hidden"]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.randn(1, 2, 20), "fewer rows than the 2"),
        (torch.randn(7, 3, 20), "the program takes"),
        (torch.full((7, 2, 20), torch.inf), "holds a NaN"),
    ],
)
def test_data_that_say_nothing_are_refused(make_program, calibrate, rows, said):
    folder, _ = make_program("pooled", is_dynamic=False)

    with pytest.raises(Problem, match=said):
        calibrate(folder, rows)


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ({"op": "quantize", "scheme": "w8a8", "method": "gptq"}, "/steps/0/method"),
        ({"op": "quantize", "scheme": "w8a8", "smooth": 0.5}, "/steps/0/smooth"),
        ({"op": "shrink", "width": 0.5, "importance": "taylor"}, "/steps/0/importance"),
    ],
)
def test_other_steps_that_need_data_are_for_folders(step, place):
    recipe = parse_recipe({"steps": [step], "calibrate": SECTION})

    with pytest.raises(Problem, match="for transformers folders") as caught:
        refuse_unsupported(recipe, "/spec")

    assert [one.pointer for one in caught.value.errors] == [f"/spec{place}"]
