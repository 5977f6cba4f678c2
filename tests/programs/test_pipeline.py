import numpy as np
import pytest
import torch

from jobs.problems import Problem
from jobs.program import open_program
from jobs.recipe import parse_recipe
from planning.program_plan import make_program_plan
from programs.pipeline import compress_program
from programs.verification import verify_program
from tests.programs.conftest import MODELS

W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}


@pytest.fixture
def compress(tmp_path):
    """Give a function that runs a recipe, verifies the artifact and opens it with plain torch."""

    def run(folder, *steps, dataset=None, **more):
        recipe = parse_recipe({"steps": list(steps), **more})
        out = tmp_path / "artifact"
        out.mkdir(exist_ok=True)
        report, kept = compress_program(
            folder, out, recipe, on_progress=lambda _: None, dataset=dataset
        )
        verify_program(folder, out, recipe, report, kept, on_progress=lambda _: None)
        plan = make_program_plan(open_program(folder / "model.pt2"), recipe)
        assert (out / "model.pt2").stat().st_size == plan.artifact_bytes
        return torch.export.load(str(out / "model.pt2")), report

    return run


def answers(exported, inputs):
    with torch.inference_mode():
        return exported.module()(inputs)


def rounded(weight):
    """Round as the docstring of programs.rounding says."""
    flat = weight.flatten(1)
    peaks = flat.abs().amax(1, keepdim=True)
    scales = torch.where(peaks == 0, 1.0, peaks / 127.5)
    return ((flat / scales).round().clamp(-128, 127) * scales).reshape(weight.shape)


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", MODELS)
def test_weights_in_int8_give_what_the_rounded_model_gives(
    make_program, compress, kind, decomposed
):
    folder, model = make_program(kind, decomposed=decomposed)

    exported, report = compress(folder, W8A16)

    changed = {tensor.name for tensor in report.tensors}
    assert changed
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in changed:
                parameter.copy_(rounded(parameter))
    for rows in (1, 3, 9):
        inputs = MODELS[kind][1](rows)
        with torch.inference_mode():
            assert torch.allclose(answers(exported, inputs), model(inputs), atol=2e-4)


@pytest.mark.parametrize("kind", ["residual", "pooled", "encoder"])
def test_activations_in_int8_too_move_the_answers_little(make_program, compress, kind):
    folder, model = make_program(kind)
    inputs = MODELS[kind][1](33)

    exported, _ = compress(folder, W8A8)

    with torch.inference_mode():
        expected = model(inputs)
    found = answers(exported, inputs)
    assert float(torch.cosine_similarity(found, expected).mean()) > 0.999
    assert not torch.equal(found, expected)
    targets = [node.target for node in exported.graph.nodes]
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    # The encoder's attention has two more.
    assert targets.count(torch.ops.aten._int_mm.default) >= linears


def test_a_linear_with_int8_activations_gives_what_integers_give(make_program, compress):
    folder, model = make_program("pooled")

    exported, _ = compress(folder, {**W8A8, "include": ["hidden"]})

    taken = []
    model.hidden.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    inputs = MODELS["pooled"][1](5)
    with torch.inference_mode():
        model(inputs)
        [x] = taken
        weight = model.hidden.weight.detach()
        scale = weight.abs().amax(1) / 127.5
        int_weight = (weight / scale[:, None]).round().clamp(-128, 127).long()
        steps = x.abs().amax(1, keepdim=True) / 127
        product = (x / steps).round().long() @ int_weight.T
        hidden = product * steps * scale + model.hidden.bias
        expected = model.classes(torch.nn.functional.gelu(hidden))
    assert torch.allclose(answers(exported, inputs), expected, atol=1e-5)
    assert torch.ops.aten._int_mm.default in {node.target for node in exported.graph.nodes}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_stay_what_they_are_around_int8(make_program, compress, dtype):
    folder, model = make_program("pooled", dtype=dtype)
    inputs = MODELS["pooled"][1](4).to(dtype)

    exported, report = compress(folder, W8A16)

    found = answers(exported, inputs)
    assert found.dtype == dtype
    with torch.inference_mode():
        assert torch.allclose(found.float(), model(inputs).float(), atol=0.02)
    assert {t.before.dtype for t in report.tensors} == {
        "BF16" if dtype == torch.bfloat16 else "F16"
    }
    assert max(t.max_error_steps for t in report.tensors) <= 0.5001
    exported, _ = compress(folder, W8A8)
    with torch.inference_mode():
        assert torch.allclose(answers(exported, inputs).float(), model(inputs).float(), atol=0.05)


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_exactly_the_smallest_weights_become_zero(make_program, compress, scope):
    folder, model = make_program("residual")

    exported, report = compress(
        folder, {"op": "prune", "sparsity": 0.3, "scope": scope, "exclude": ["classes"]}
    )

    names = ["stem.weight", "depth.weight", "point.weight", "down.weight"]
    before = {name: model.state_dict()[name].flatten(1).numpy() for name in names}
    if scope == "global":
        every = np.sort(np.abs(np.concatenate([w.reshape(-1) for w in before.values()])))
        limits = dict.fromkeys(names, every[round(0.3 * len(every)) - 1])
    for name, weight in before.items():
        if scope == "tensor":
            limit = np.sort(np.abs(weight).reshape(-1))[round(0.3 * weight.size) - 1]
        elif scope == "row":
            limit = np.sort(np.abs(weight), axis=1)[:, [round(0.3 * weight.shape[1]) - 1]]
        else:
            limit = limits[name]
        expected = np.where(np.abs(weight) <= limit, 0, weight)
        found = exported.state_dict[name].detach().flatten(1).numpy()
        assert np.array_equal(found, expected), name
    zeros = sum(int((exported.state_dict[name] == 0).sum()) for name in names)
    assert report.steps[0].weights_pruned == zeros


def test_two_of_every_four_inputs_become_zero(make_program, compress):
    folder, model = make_program("encoder")

    exported, report = compress(folder, {"op": "prune", "structure": "2:4"}, W8A16)

    weight = exported.state_dict["layer.linear1.weight"]
    groups = weight.reshape(-1, 4)
    assert bool(((groups != 0).sum(1) <= 2).all())
    before = model.layer.linear1.weight.detach().reshape(-1, 4).abs()
    largest = before.topk(2, dim=1).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(1, largest, value=True)
    assert bool((groups[~kept] == 0).all())
    assert [step.op for step in report.steps] == ["prune", "quantize"]


def test_a_random_draw_is_the_same_each_time_and_counts_exactly(make_program, compress):
    folder, _ = make_program("pooled")
    step = {"op": "prune", "method": "random", "sparsity": 0.25, "seed": 3, "biases": True}

    first, report = compress(folder, step)
    second, _ = compress(folder, step)

    for name, tensor in first.state_dict.items():
        assert torch.equal(tensor, second.state_dict[name])
        assert int((tensor == 0).sum()) == round(0.25 * tensor.numel()), name
    assert len(report.tensors) == 8


def test_equal_jobs_give_equal_bytes(make_program, compress, tmp_path):
    folder, _ = make_program("residual")
    steps = ({"op": "shrink", "width": 0.5}, {"op": "prune", "sparsity": 0.5}, W8A8)

    compress(folder, *steps)
    first = (tmp_path / "artifact/model.pt2").read_bytes()
    compress(folder, *steps)

    assert (tmp_path / "artifact/model.pt2").read_bytes() == first


def test_tied_weights_are_left_alone_with_the_reason(make_program, compress):
    folder, _ = make_program("tied")

    exported, report = compress(folder, W8A16)

    assert {tensor.name for tensor in report.tensors} == {"hidden.weight"}
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert "tied" in reasons["tokens.weight"]
    held = exported.state_dict
    assert held["tokens.weight"].data_ptr() == held["logits.weight"].data_ptr()


def test_a_weight_that_is_no_number_is_named(make_program, compress):
    def spoil(model):
        model.hidden.weight[2, 3] = float("nan")

    folder, _ = make_program("pooled", change=spoil)

    with pytest.raises(Problem, match=r"'hidden.weight' holds nan at \[2, 3\]"):
        compress(folder, W8A16)


def test_an_int8_program_is_not_rounded_again(make_program, compress, tmp_path):
    folder, _ = make_program("pooled")
    compress(folder, W8A16)

    with pytest.raises(Problem) as caught:
        make_program_plan(
            open_program(tmp_path / "artifact/model.pt2"), parse_recipe({"steps": [W8A16]})
        )

    assert caught.value.code == "already_quantized"


@pytest.mark.parametrize(
    ("step", "pointer"),
    [
        ({**W8A16, "group_size": 16}, "/steps/0/group_size"),
        ({**W8A16, "embeddings": True}, "/steps/0/embeddings"),
        ({**W8A16, "target_bytes": "1MiB"}, "/steps/0/target_bytes"),
        ({"op": "shrink", "layers": 0.5}, "/steps/0/layers"),
    ],
    ids=str,
)
def test_what_is_not_done_to_programs_is_refused_by_its_place(make_program, step, pointer):
    folder, _ = make_program("pooled")

    with pytest.raises(Problem) as caught:
        make_program_plan(
            open_program(folder / "model.pt2"), parse_recipe({"steps": [step]}), "/spec"
        )

    assert caught.value.code == "step_unsupported"
    assert [one.pointer for one in caught.value.errors] == [f"/spec{pointer}"]
