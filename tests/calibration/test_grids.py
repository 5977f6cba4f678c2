"""Floats that are handed to the artifact's writer, and the steps that it finds in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calibration.grids import Grid
from engine.pipeline import compress
from jobs.recipe import parse_recipe

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def written(tmp_path, weight, group_size):
    """Have the engine round a weight, and give its steps and scales."""
    model, artifact = tmp_path / "model", tmp_path / "artifact"
    for folder in (model, artifact):
        folder.mkdir(exist_ok=True)
    save_file({"a.weight": weight}, model / "model.safetensors")
    scheme = {"scheme": "w8a16", "group_size": group_size} if group_size else {"scheme": "w8a8"}
    recipe = parse_recipe({"steps": [{"op": "quantize", **scheme}]})
    compress(model, artifact, recipe, on_progress=lambda _: None)
    tensors = load_file(artifact / "model.safetensors")
    scales = tensors["a.weight_scale"].reshape(len(weight), -1).float()
    if group_size:
        packed = tensors["a.weight_packed"].view(torch.uint8)[:, : weight.shape[1]]
        return packed.float() - 128, scales
    return tensors["a.weight"].float(), scales


def random_weight(dtype, shape=(24, 96), seed=0, scale=0.05):
    chance = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[0], 1, generator=chance).exp() * scale
    return (torch.randn(shape, generator=chance) * spread).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 32])
def test_a_grid_has_the_scales_and_steps_that_the_writer_finds(tmp_path, dtype, group_size):
    weight = random_weight(dtype)
    weight[3] = 0

    steps, scales = written(tmp_path, weight, group_size)

    grid = Grid.of(weight, group_size)
    assert torch.equal(grid.scales, scales)
    assert torch.equal(grid.nearest(), steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 32])
def test_the_writer_finds_any_steps_that_it_is_handed_as_floats(tmp_path, dtype, group_size):
    weight = random_weight(dtype)
    weight[5] = 0
    grid = Grid.of(weight, group_size)
    most = grid.spread(grid.most())
    chance = torch.Generator().manual_seed(1)
    wanted = (torch.rand(weight.shape, generator=chance) * 2 - 1) * most
    wanted = torch.where(grid.pinned(), grid.nearest(), wanted.round())
    wanted[5] = 0

    steps, scales = written(tmp_path, grid.floats(wanted), group_size)

    assert torch.equal(scales, grid.scales)
    assert torch.equal(steps, wanted)


@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from([1e-4, 0.02, 30.0]))
def test_one_weight_of_every_scale_is_pinned_and_it_is_a_largest_one(seed, dtype, scale):
    weight = random_weight(dtype, (5, 32), seed, scale)

    grid = Grid.of(weight, 16)

    pinned = grid.pinned().reshape(5, 2, 16)
    assert torch.equal(pinned.sum(2), torch.ones(5, 2, dtype=torch.int64))
    assert torch.equal(weight.float().abs().reshape(5, 2, 16)[pinned], grid.peaks.flatten())
