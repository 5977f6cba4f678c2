import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file

from benchmarks.errors import Errors, measure_errors

ROWS, COLUMNS = 24, 32


@pytest.fixture
def weight():
    return torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path, weight):
    folder = tmp_path / "model"
    folder.mkdir()
    others = {"embed.weight": torch.ones(4, 4), "a.bias": torch.ones(ROWS)}
    save_file({"a.weight": weight, **others}, folder / "model.safetensors")
    return folder


def rounded(weight: torch.Tensor, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = weight.reshape(ROWS, groups, -1)
    scale = grouped.abs().amax(2, keepdim=True) / 127
    return (grouped / scale).round().to(torch.int8).reshape(ROWS, COLUMNS), scale.squeeze(2)


def as_packed(values, scale):
    return {
        "a.weight_packed": pack_to_int32(values, 8),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor(values.shape),
    }


def as_int(values, scale):
    return {"a.weight": values, "a.weight_scale": scale}


def as_quanto(values, scale):
    return {"a.weight._data": values, "a.weight._scale": scale}


def as_bitsandbytes(values, scale):
    return {"a.weight": values, "a.SCB": (scale * 127).squeeze(1)}


def write(folder, tensors):
    folder.mkdir()
    untouched = {"embed.weight": torch.ones(4, 4), "a.bias": torch.ones(ROWS)}
    save_file({**tensors, **untouched}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("layout", [as_packed, as_int, as_quanto, as_bitsandbytes])
def test_the_errors_are_those_of_the_definition_in_every_layout(tmp_path, model, weight, layout):
    values, scale = rounded(weight)

    errors = measure_errors(model, write(tmp_path / "output", layout(values, scale)))

    source = weight.numpy().astype(np.float64)
    difference = values.numpy() * scale.numpy().astype(np.float64) - source
    kept = values.numpy() != 0
    expected = Errors(
        weights=ROWS * COLUMNS,
        relative_rmse=np.sqrt((difference**2).mean() / (source**2).mean()),
        max_error_steps=np.abs(difference / scale.numpy())[kept].max(),
        zeros=1 - kept.mean(),
    )
    # The scale passes float32 once or, as bitsandbytes keeps it, three times: some 2**-23 of 127.
    assert vars(errors) == pytest.approx(vars(expected), rel=1e-4)


def test_groups_have_scales_of_their_own(tmp_path, model, weight):
    values, scale = rounded(weight, groups=4)

    errors = measure_errors(model, write(tmp_path / "output", as_int(values, scale)))

    assert 0.4 < errors.max_error_steps <= 0.5 + 127 * 2**-22


def test_pruned_weights_count_in_the_rmse_but_not_in_the_steps(tmp_path, model, weight):
    values, scale = rounded(weight)
    values[:, ::2] = 0

    errors = measure_errors(model, write(tmp_path / "output", as_int(values, scale)))

    assert errors.zeros >= 0.5
    assert errors.relative_rmse > 0.5
    assert errors.max_error_steps <= 0.5 + 127 * 2**-22


def test_a_channel_of_zeros_has_no_error(tmp_path, weight):
    weight[0] = 0
    model = write(tmp_path / "model", {"a.weight": weight})
    values, scale = rounded(weight)

    output = write(tmp_path / "output", as_int(values.nan_to_num(0), scale))

    assert measure_errors(model, output).max_error_steps <= 0.5 + 127 * 2**-22


def test_an_output_in_which_nothing_was_quantized_is_refused(model):
    with pytest.raises(ValueError, match="model holds no quantized weight of model"):
        measure_errors(model, model)
