"""Programs trained with weights as they will be rounded, beside the artifact and plain PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from jobs.recipe import parse_recipe
from programs.pipeline import compress_program
from tests.programs.conftest import MODELS, store_kind
from training.programs import TrainedProgram

ROUNDING = parse_recipe({"steps": [{"op": "quantize", "scheme": "w8a16"}]})
INPUTS = {"residual": "image", "pooled": "sound", "encoder": "ids"}
ROWS = 6


@pytest.fixture
def opened(tmp_path, make_step):
    """Store a program, and give its folder, its model, its data and itself, to be rounded."""

    def give(kind, **options):
        folder, model = store_kind(tmp_path, kind, **options)
        inputs, labels = MODELS[kind][1](ROWS), torch.arange(ROWS) % 3
        with (tmp_path / "rows").open("wb") as file:
            np.savez(file, **{INPUTS[kind]: inputs.numpy(), "labels": labels.numpy()})
        trained = TrainedProgram(folder / "model.pt2", tmp_path / "rows", make_step(), "cpu")
        return folder, model, (inputs, labels), trained

    return give


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", ["residual", "encoder"])
def test_a_program_answers_as_its_artifact_does(opened, tmp_path, kind, decomposed):
    folder, _, (inputs, _), trained = opened(kind, decomposed=decomposed)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    report, _ = compress_program(folder, artifact, ROUNDING, on_progress=lambda _: None)

    told = trained.round_as(ROUNDING)

    assert told.tensors == len(report.tensors) > 3
    assert not told.rounds_inputs
    with torch.inference_mode():
        expected = torch.export.load(str(artifact / "model.pt2")).module()(inputs)
        found = trained.logits({INPUTS[kind]: inputs})
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_the_gradient_of_a_program_is_that_where_its_rounded_weights_are(opened, make_step, again):
    _, model, (inputs, labels), trained = opened("residual")
    found = trained.trained_parameters(make_step())
    trained.round_as(ROUNDING)
    assert not again or trained.checkpoint_activations()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                flat = weight.flatten(1)
                scale = flat.abs().amax(1, keepdim=True) / 127.5
                rounded = (flat / scale).round().clamp(-128, 127) * scale
                weight.copy_(rounded.reshape(weight.shape))
    F.cross_entropy(model(inputs), labels).backward()

    F.cross_entropy(trained.logits({"image": inputs}), labels).backward()

    for name, weight in model.named_parameters():
        difference = (found[name].grad - weight.grad).norm()
        assert difference <= 1e-5 * weight.grad.norm() + 1e-7, name
