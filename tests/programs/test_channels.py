import numpy as np
import pytest
import torch

from jobs.recipe import parse_recipe
from programs.pipeline import compress_program
from programs.verification import verify_program
from tests.programs.conftest import MODELS


@pytest.fixture
def shrink(tmp_path):
    def run(folder, width=0.5, dataset=None, **more):
        members = {"steps": [{"op": "shrink", "width": width, **more}]}
        if dataset is not None:
            members["evaluate"] = {"dataset": "ds_" + "0" * 64, "rows": 1000, "batch_size": 25}
        recipe, out = parse_recipe(members), tmp_path / "artifact"
        out.mkdir(exist_ok=True)
        report, kept = compress_program(
            folder, out, recipe, on_progress=lambda _: None, dataset=dataset
        )
        verify_program(folder, out, recipe, report, kept, on_progress=lambda _: None)
        return torch.export.load(str(out / "model.pt2")), kept

    return run


def silence(modules, channels):
    """Have modules give nothing in some of their channels."""
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter[channels] = 0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean[channels] = 0


def quiet_residual(model):
    dead = torch.arange(0, 16, 2)
    silence([model.stem, model.stem_norm, model.point, model.point_norm, model.depth], dead)
    model.down.weight[:, dead] = 0
    model.point.weight[:, dead] = 0
    silence([model.down], torch.arange(12, 24))


def quiet_pooled(model):
    silence([model.a], torch.arange(6))
    silence([model.b], torch.arange(1, 5))
    silence([model.hidden], torch.arange(10, 20))


def quiet_encoder(model):
    silence([model.layer.linear1], torch.arange(3, 19))


@pytest.mark.parametrize(
    ("kind", "change"),
    [("residual", quiet_residual), ("pooled", quiet_pooled), ("encoder", quiet_encoder)],
)
def test_channels_that_say_nothing_go_and_the_answers_stay(make_program, shrink, kind, change):
    folder, model = make_program(kind, change=change)

    exported, _ = shrink(folder)

    before = sum(parameter.numel() for parameter in model.parameters())
    after = sum(tensor.numel() for tensor in exported.parameters())
    assert after < 0.9 * before
    for rows in (1, 4, 7):
        inputs = MODELS[kind][1](rows)
        with torch.inference_mode():
            assert torch.allclose(exported.module()(inputs), model(inputs), atol=1e-5)


def test_the_channels_with_the_largest_weights_stay(make_program, shrink):
    def grade(model):
        model.hidden.weight *= torch.logspace(1, -4, 20)[:, None]
        model.classes.weight.fill_(1)

    folder, _ = make_program("pooled", change=grade)

    _, kept = shrink(folder, 0.25, include=["hidden"])

    assert kept["hidden.weight"][0].tolist() == [0, 1, 2, 3, 4]
    assert kept["classes.weight"][1].tolist() == [0, 1, 2, 3, 4]


def test_statistics_of_a_batch_norm_are_those_of_the_data(make_program, shrink, tmp_path):
    folder, _ = make_program("residual")
    images = torch.randn(100, 3, 8, 8) * 3 + 1
    np.savez(tmp_path / "images.npz", image=images.numpy())

    exported, _ = shrink(folder, dataset=tmp_path / "images.npz")

    held = exported.state_dict
    with torch.no_grad():
        stem = torch.nn.functional.conv2d(images, held["stem.weight"], held["stem.bias"], padding=1)
    parts = stem.split(25)
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    assert torch.allclose(held["stem_norm.running_mean"], means, atol=1e-4)
    assert torch.allclose(held["stem_norm.running_var"], variances, rtol=1e-4)
    assert bool((held["point_norm.running_var"] > 0).all())
