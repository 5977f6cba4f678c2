import numpy as np
import pytest
import torch

from engine.kernels import ProcessorKernels
from engine.rankings import MAGNITUDE
from engine.torch_kernels import TorchKernels

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {0: torch.bfloat16, 1: torch.float16, 2: torch.float32}


@pytest.fixture(autouse=True)
def _device_is_there(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def draw_bits(shape, kind) -> np.ndarray:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    values[1] = 0
    # Powers of two over a scale that is one make exact ties.
    values[2, :] = torch.arange(shape[1]) % 256 - 127.5
    integers, unsigned = (torch.int32, np.uint32) if kind == 2 else (torch.int16, np.uint16)
    return values.to(DTYPES[kind]).view(integers).numpy().view(unsigned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("group_size", [332, 83])
@pytest.mark.parametrize("is_pruned", [False, True])
def test_rounding_gives_the_bytes_and_figures_of_the_processor(device, kind, group_size, is_pruned):
    before = draw_bits((16, 332), kind)
    after = before.copy() if is_pruned else before
    after[3:, ::2] = 0
    mask = MAGNITUDE[before.itemsize]

    results = []
    for kernels in (ProcessorKernels(), TorchKernels(device)):
        stored = np.empty(16 * 332 // group_size, before.dtype)
        rounded = np.full((16, 336), 7, np.uint8)
        scratch, tallies = np.empty((3, 1024), np.uint32), np.zeros(5)
        kernels.round_rows(
            before,
            after,
            is_pruned,
            kind,
            mask,
            group_size,
            stored,
            0x80,
            rounded,
            scratch,
            tallies,
        )
        results.append((stored, rounded, tallies))

    (scales, expected, figures), (device_scales, pressed, device_figures) = results
    np.testing.assert_array_equal(device_scales, scales)
    np.testing.assert_array_equal(pressed, expected)
    np.testing.assert_allclose(device_figures, figures, rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_an_artifact_made_on_a_device_has_the_bytes_of_one_made_on_the_processor(
    save_model, tmp_path, weights, device, monkeypatch
):
    import engine.pipeline
    import engine.pressing
    from jobs.recipe import parse_recipe

    tensors = {f"{i}.weight": weights(640, 512, dtype=torch.bfloat16, seed=i) for i in range(2)}
    steps = [
        {"op": "prune", "sparsity": 0.3},
        {"op": "prune", "structure": "2:4"},
        {"op": "quantize", "scheme": "w8a16"},
    ]
    model = save_model(tensors)
    reports = {}
    for name, kernels in (("host", ProcessorKernels), ("device", lambda: TorchKernels(device))):
        monkeypatch.setattr(engine.pressing, "kernels_for", lambda *_, make=kernels: make())
        (tmp_path / name).mkdir()
        reports[name] = engine.pipeline.compress(
            model, tmp_path / name, parse_recipe({"steps": steps}), on_progress=lambda _: None
        )

    host, other = (tmp_path / name / "model.safetensors" for name in ("host", "device"))
    assert host.read_bytes() == other.read_bytes()
    assert reports["host"].memory.device is None
    if device == "cuda":
        assert reports["device"].memory.device.allocated_peak_bytes > 0


@pytest.mark.gpu
def test_a_device_holds_what_was_planned_whatever_the_size_and_a_limit_is_kept(
    save_model, tmp_path, weights
):
    from engine.pipeline import compress
    from jobs.problems import Problem
    from jobs.recipe import parse_recipe

    def press(count, **budget):
        tensors = {f"{i}.weight": weights(2048, 1024, seed=i) for i in range(count)}
        recipe = {"steps": [{"op": "quantize", "scheme": "w8a8"}], "budget": budget}
        folder = tmp_path / f"{count}-{len(budget)}"
        folder.mkdir()
        model = save_model(tensors, name=f"model-{folder.name}")
        report = compress(
            model, folder, parse_recipe(recipe), device="cuda", on_progress=lambda _: None
        )
        return report.memory.device

    small, large = press(2), press(16)

    assert small.reserved_peak_bytes == large.reserved_peak_bytes <= small.predicted_peak_bytes
    with pytest.raises(Problem) as caught:
        press(1, device_memory=1000)
    least = caught.value.extra["smallest_bytes"]
    assert press(3, device_memory=least).headroom_bytes >= 0
