import numpy as np
import pytest
import torch

from engine.kernels import ProcessorKernels
from engine.torch_kernels import TorchKernels

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
on_widths = pytest.mark.parametrize("dtype", [np.uint16, np.uint32])


@pytest.fixture(autouse=True)
def _device_is_there(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def draw_bits(shape, dtype) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.02
    pattern = values.view(np.uint32)
    return (pattern >> 16).astype(np.uint16) if dtype is np.uint16 else pattern


@on_devices
@on_widths
def test_rounding_gives_the_bytes_of_the_processor(device, dtype):
    bits = draw_bits((64, 333), dtype)
    shift = 16 if dtype is np.uint16 else 0
    weight = (bits.astype(np.uint32) << shift).view(np.float32)
    # Scales below amax / 127.5 make some values clip, and powers of two make exact ties.
    scales = np.abs(weight).max(1) / np.float32(127.5)
    scales[::3] *= np.float32(0.7)
    scales[1::3] = np.float32(2.0**-12)
    expected, rounded = np.empty((2, *bits.shape), np.int8)

    ProcessorKernels().round_channels(bits, shift, scales, expected)
    TorchKernels(device).round_channels(bits, shift, scales, rounded)

    np.testing.assert_array_equal(rounded, expected)


@on_devices
@on_widths
def test_thresholds_and_ties_give_the_bytes_of_the_processor(device, dtype):
    keys = np.random.default_rng(0).integers(0, 9, (20, 101)).astype(dtype)
    thresholds = np.arange(20).astype(dtype) // 2
    expected, pruned = np.full((2, 20, 101), 7, dtype)
    ties, ties_left = np.full((2, 20), 6)
    ties[3] = ties_left[3] = 10**6

    ProcessorKernels().erase_smallest(expected, keys, thresholds, ties)
    TorchKernels(device).erase_smallest(pruned, keys, thresholds, ties_left)

    np.testing.assert_array_equal(pruned, expected)
    np.testing.assert_array_equal(ties_left, ties)


@on_devices
@pytest.mark.parametrize("shape", [(5, 7, 4, 1), (3, 2, 8, 9)])
@pytest.mark.parametrize("largest", [3, 2**32 - 1])
def test_groups_give_the_bytes_of_the_processor(device, shape, largest):
    keys = np.random.default_rng(0).integers(0, largest, shape, dtype=np.uint32, endpoint=True)
    expected, pruned = np.full((2, *shape), 7, np.uint16)

    ProcessorKernels().erase_in_groups(expected, keys)
    TorchKernels(device).erase_in_groups(pruned, keys)

    np.testing.assert_array_equal(pruned, expected)


@pytest.mark.gpu
def test_an_artifact_made_on_a_gpu_has_the_bytes_of_one_made_on_the_processor(
    save_model, tmp_path, weights
):
    from engine.pipeline import compress
    from jobs.recipe import parse_recipe

    tensors = {f"{i}.weight": weights(640, 512, dtype=torch.bfloat16, seed=i) for i in range(2)}
    recipe = parse_recipe(
        {
            "steps": [
                {"op": "prune", "sparsity": 0.3},
                {"op": "prune", "structure": "2:4"},
                {"op": "quantize", "scheme": "w8a16"},
            ]
        }
    )
    reports = {}
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        reports[device] = compress(
            save_model(tensors),
            tmp_path / device,
            recipe,
            device=device,
            on_progress=lambda _: None,
        )

    cpu, cuda = (tmp_path / device / "model.safetensors" for device in ("cpu", "cuda"))
    assert cpu.read_bytes() == cuda.read_bytes()
    assert reports["cuda"].memory.device.allocated_peak_bytes > 0
    assert reports["cpu"].memory.device is None
