import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from engine.pipeline import compress
from jobs.checkpoint import INDEX_NAME, open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe

W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}
SCHEMES = pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])


def load_artifact(folder: Path) -> dict[str, torch.Tensor]:
    """Run the artifact's own load.py, as its user would."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_state_dict(folder)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def quantize_reference(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 values and scale of a BF16 weight [O, I]; such scales are exact when rounded up."""
    amax = weight.float().abs().amax(1, keepdim=True)
    exact = amax / 127.5
    scale = exact.to(torch.bfloat16)
    scale = torch.where(
        scale.float() < exact, torch.nextafter(scale, torch.tensor(torch.inf).bfloat16()), scale
    )
    values = torch.clamp(torch.round(weight.float() / scale.float()), -128, 127)
    return values.to(torch.int8), scale


@pytest.fixture
def two_layers():
    """The network of PyTorch's own pruning and quantization tutorials."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(1000, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )


def test_a_two_layer_network_is_pruned_at_random_by_half_and_quantized(
    save_model, press, two_layers
):
    state = two_layers.state_dict()
    model = save_model(state)

    prune = {"op": "prune", "method": "random", "sparsity": 0.5, "biases": True}
    pruned = press(model, prune).tensors
    pressed = press(model, prune, W8A8)

    zeros = {name: int((tensor == 0).sum()) for name, tensor in pruned.items()}
    assert zeros == {"0.weight": 50_000, "0.bias": 50, "2.weight": 500, "2.bias": 5}
    assert pressed.report.steps[0].weights_pruned == 50_555
    assert pressed.report.steps[0].tensors_changed == 4
    assert pressed.report.steps[1].tensors_changed == 2
    loaded = load_artifact(pressed.folder)
    for name in ("0.weight", "2.weight"):
        scale = pressed.tensors[f"{name}_scale"]
        assert pressed.tensors[name].dtype == torch.int8
        assert torch.all(loaded[name][pruned[name] == 0] == 0)
        assert torch.all((loaded[name] - pruned[name]).abs() <= scale * (0.5 + 2.0**-15))
    for name in ("0.bias", "2.bias"):
        assert torch.equal(loaded[name], pruned[name])
    two_layers.load_state_dict(loaded)


@SCHEMES
def test_int8_values_and_scales_are_those_of_the_reference(save_model, press, weights, scheme):
    weight = weights(24, 10, dtype=torch.bfloat16)

    pressed = press(save_model({"a.weight": weight}), {"op": "quantize", "scheme": scheme})

    values, scale = quantize_reference(weight)
    expected = {"a.weight_scale": scale}
    if scheme == "w8a8":
        expected["a.weight"] = values
    else:
        expected["a.weight_packed"] = pack_to_int32(values, 8)
        expected["a.weight_shape"] = torch.tensor([24, 10])
    assert set(pressed.tensors) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(pressed.tensors[name], tensor, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 13), seed=st.integers(0, 99))
def test_packed_values_come_back_through_the_reference_unpacking(
    tmp_path_factory, rows, columns, seed
):
    folder = tmp_path_factory.mktemp("model")
    artifact = tmp_path_factory.mktemp("artifact")
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    from safetensors.torch import load_file, save_file

    save_file({"a.weight": weight}, folder / "model.safetensors")
    compress(folder, artifact, parse_recipe({"steps": [W8A16]}), on_progress=lambda _: None)

    tensors = load_file(artifact / "model.safetensors")
    values = unpack_from_int32(tensors["a.weight_packed"], 8, torch.Size([rows, columns]))
    expected = values.float() * tensors["a.weight_scale"]
    assert torch.equal(load_artifact(artifact)["a.weight"], expected)
    assert torch.equal(pack_to_int32(values, 8), tensors["a.weight_packed"])


@SCHEMES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_artifact_does_not_depend_on_the_size_of_blocks(
    save_model, press, weights, scheme, dtype
):
    tensors = {
        "a.weight": weights(37, 19, dtype=dtype),
        "conv.weight": weights(8, 4, 3, 3, dtype=dtype),
        "a.bias": weights(37, dtype=dtype),
        "norm.weight": weights(19, dtype=dtype),
    }
    steps = (
        {"op": "prune", "sparsity": 0.4},
        {"op": "prune", "sparsity": 0.5, "scope": "row", "method": "random"},
        {"op": "quantize", "scheme": scheme},
    )
    model = save_model(tensors)

    artifacts = [press(model, *steps, chunk_bytes=n).folder for n in (1, 100, 1000, 2**21)]

    assert digests(artifacts[0]) == digests(artifacts[1]) == digests(artifacts[2])
    assert digests(artifacts[0]) == digests(artifacts[3])


PRUNE = {"op": "prune", "sparsity": 0.37}
RECIPES = {
    "rounded": [],
    "rounded by groups": [{"group_size": 24}],
    "per tensor": [PRUNE],
    "per row": [{**PRUNE, "scope": "row"}],
    "global": [{**PRUNE, "scope": "global"}],
    "2:4, then per tensor": [{"op": "prune", "structure": "2:4"}, {**PRUNE, "sparsity": 0.6}],
    "4:8 at random": [{"op": "prune", "structure": "4:8", "method": "random"}],
    "global at random, then per row": [
        {**PRUNE, "scope": "global", "method": "random"},
        {**PRUNE, "sparsity": 0.6, "scope": "row"},
    ],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_longer_than_a_chunk_and_the_number_of_threads_change_nothing(
    save_model, press, weights, recipe
):
    model = save_model(
        {
            "long.weight": weights(5, 2400, dtype=torch.bfloat16),
            "tall.weight": weights(1200, 24, dtype=torch.float16, seed=1),
            "conv.weight": weights(16, 24, 3, 3, seed=2),
            "flat.bias": weights(5000),
        }
    )
    rounding = {"op": "quantize", "scheme": "w8a16", "exclude": ["conv"]}
    steps = [step for step in RECIPES[recipe] if "op" in step]
    rounding |= next((step for step in RECIPES[recipe] if "op" not in step), {})

    artifacts = [
        press(model, *steps, rounding, chunk_bytes=chunk_bytes, threads=threads)
        for chunk_bytes, threads in ((2**20, 1), (2**20, 3), (2048, 1), (2048, 4), (500, 2))
    ]

    first, *others = artifacts
    for other in others:
        assert digests(other.folder) == digests(first.folder)
        assert other.report.tensors == first.report.tensors


@SCHEMES
def test_a_convolution_has_one_scale_per_output_channel(save_model, press, weights, scheme):
    weight = weights(6, 5, 3, 3)

    pressed = press(save_model({"conv.weight": weight}), {"op": "quantize", "scheme": scheme})

    restored = load_artifact(pressed.folder)["conv.weight"]
    scale = pressed.tensors["conv.weight_scale"]
    assert scale.shape == ((6, 1, 1, 1) if scheme == "w8a8" else (6, 1))
    steps = (restored - weight).abs().reshape(6, -1) / scale.reshape(6, 1)
    assert float(steps.max()) <= 0.5 + 2.0**-15
    if scheme == "w8a16":
        assert pressed.tensors["conv.weight_shape"].tolist() == [6, 5, 3, 3]


@SCHEMES
def test_shards_keep_their_names_and_the_index_tells_the_new_tensors(
    save_model, press, weights, scheme
):
    tensors = {f"{i}.weight": weights(8, 6, seed=i) for i in range(5)} | {"n.weight": weights(3)}
    model = save_model(tensors, shards=3)

    pressed = press(model, {"op": "quantize", "scheme": scheme})

    artifact = open_checkpoint(pressed.folder)
    assert [s.name for s in artifact.shards] == [s.name for s in open_checkpoint(model).shards]
    index = json.loads((pressed.folder / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in artifact.tensors.values())
    assert set(index["weight_map"]) == set(artifact.tensors)
    assert set(load_artifact(pressed.folder)) == set(tensors)


def test_every_tensor_starts_at_a_multiple_of_its_element_size(save_model, press, weights):
    tensors = {f"{i}.weight": weights(3, 5, seed=i) for i in range(3)} | {"n": weights(3).double()}

    pressed = press(save_model(tensors), W8A8)

    (shard,) = open_checkpoint(pressed.folder).shards
    assert shard.header.data_start % 8 == 0
    assert [t.start % (t.nbytes // t.elements) for t in shard.header.tensors] == [0] * 7
    with safe_open(pressed.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_no_step_touches_is_copied_unchanged(save_model, press, weights):
    tensors = {
        "a.weight": weights(4, 8),
        "embed_tokens.weight": weights(9, 4),
        "lm_head.weight": weights(9, 4, seed=1),
        "norm.weight": weights(4),
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty.weight": torch.zeros(0, 4),
        "d.weight": weights(4, 4).double(),
    }

    pressed = press(save_model(tensors), W8A16)

    loaded = load_artifact(pressed.folder)
    assert set(loaded) == set(tensors)
    for name in set(tensors) - {"a.weight"}:
        torch.testing.assert_close(loaded[name], tensors[name], rtol=0, atol=0)
    reasons = {skip.name: skip.reason for skip in pressed.report.skipped}
    assert set(reasons) == {"embed_tokens.weight", "lm_head.weight", "empty.weight", "d.weight"}
    assert "F64" in reasons["d.weight"]
    assert "output head" in reasons["lm_head.weight"]


def test_load_py_lists_the_tensors_and_stays_short(save_model, press, weights):
    pressed = press(save_model({"a.weight": weights(4, 8)}), W8A16)

    listing = subprocess.run(
        [sys.executable, "load.py"], cwd=pressed.folder, capture_output=True, text=True, check=True
    )

    assert listing.stdout == "a.weight\ttorch.float32\t(4, 8)\n"
    assert len((pressed.folder / "load.py").read_text().splitlines()) <= 60


def test_load_py_leaves_tensors_alone_that_only_look_like_scales(save_model, press, weights):
    tensors = {"a.weight": weights(4, 8), "logit_scale": torch.tensor(2.0), "x_shape": weights(2)}

    loaded = load_artifact(press(save_model(tensors), W8A16).folder)

    assert set(loaded) == set(tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_value_that_is_not_finite_is_refused_by_name_and_index(
    save_model, press, weights, value, dtype
):
    bad = weights(30, 4, 3, 3, dtype=dtype)
    bad[17, 2, 1, 0] = value
    bad[18] = value
    model = save_model({"fine.weight": weights(3, 3), "bad.weight": bad})

    for steps in ([W8A16], [{"op": "prune", "sparsity": 0.5, "scope": "global"}]):
        with pytest.raises(Problem, match=r"'bad.weight'.*\[17, 2, 1, 0\]") as caught:
            press(model, *steps, chunk_bytes=500)
        assert caught.value.code == "non_finite_weight"
        assert caught.value.extra == {"tensor": "bad.weight", "index": [17, 2, 1, 0]}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight_packed": torch.zeros(2, 2, dtype=torch.int32)},
        {"a.weight": torch.zeros(2, 2, dtype=torch.int8)},
        {"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)},
    ],
)
def test_a_quantized_model_is_refused(save_model, press, tensors):
    with pytest.raises(Problem, match=r"'a\.weight") as caught:
        press(save_model(tensors | {"b.weight": torch.ones(2, 2)}), W8A16)

    assert caught.value.code == "already_quantized"


def test_a_step_that_matches_nothing_fails_and_says_what_there_was(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 4), "embed.weight": weights(4, 4)})

    with pytest.raises(
        Problem, match=r"Step 2 \(quantize\).*a.weight.*No include pattern"
    ) as caught:
        press(model, {"op": "prune", "sparsity": 0.5}, {**W8A16, "include": ["layers.*"]})

    assert caught.value.code == "nothing_changed"


@pytest.mark.parametrize(
    ("tensors", "step", "words"),
    [
        ({"a.weight": torch.ones(4)}, W8A16, "two or more dimensions"),
        ({"a.weight": torch.ones(4, 4)}, {"op": "prune", "sparsity": 0.0}, "rounds to no weight"),
        ({"a.weight": torch.ones(4, 6)}, {"op": "prune", "structure": "2:4"}, "6 inputs"),
        ({"W": torch.ones(4, 6)}, W8A16, "does not end in .weight"),
        ({"up.deconv.weight": torch.ones(4, 6, 3, 3)}, W8A16, "ConvTranspose2d"),
    ],
)
def test_a_job_that_would_change_nothing_fails_and_says_why(
    save_model, press, tensors, step, words
):
    with pytest.raises(Problem, match=words) as caught:
        press(save_model(tensors), step)

    assert caught.value.code == "nothing_changed"


def test_sparsity_zero_before_quantization_prunes_nothing(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 8)})

    both = press(model, {"op": "prune", "sparsity": 0.0}, W8A16)

    assert digests(both.folder) == digests(press(model, W8A16).folder)
    assert both.report.steps[0].weights_pruned == 0


def test_compressed_tensors_is_refused_for_a_bare_checkpoint(save_model, press, weights):
    with pytest.raises(Problem, match=r"no config\.json") as caught:
        press(
            save_model({"a.weight": weights(4, 8)}), W8A16, output={"format": "compressed-tensors"}
        )

    assert caught.value.code == "output_unsupported"


def test_an_artifact_above_the_disk_budget_is_refused_before_anything_is_written(
    save_model, tmp_path, weights
):
    model = save_model({"a.weight": weights(64, 64)})
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    exact = 64 * 64 + 64 * 4
    recipe = parse_recipe({"steps": [W8A8], "budget": {"disk": exact}})

    with pytest.raises(Problem) as caught:
        compress(model, artifact, recipe, on_progress=lambda _: None)

    assert caught.value.code == "disk_budget_exceeded"
    assert caught.value.extra["predicted_bytes"] > exact
    assert list(artifact.iterdir()) == []


def test_the_predicted_size_is_the_size_on_disk(save_model, press, weights):
    model = save_model({"a.weight": weights(64, 64)}, shards=2)
    (model / "README.md").write_text("A model.")
    size = sum(p.stat().st_size for p in press(model, W8A8).folder.iterdir())

    press(model, W8A8, budget={"disk": size})
    with pytest.raises(Problem, match=f"{size} bytes"):
        press(model, W8A8, budget={"disk": size - 1})


def test_code_and_pickles_stay_behind_and_data_comes_along(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 8)})
    for name in ("README.md", "tokenizer.json", "vocab.txt", "1_Pooling/config.json"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(name)
    for name in (
        "modeling.py",
        "pytorch_model.bin",
        "tokenizer.pkl",
        ".secret.json",
        "manifest.json",
    ):
        (model / name).write_text(name)
    (model / "link.txt").symlink_to("/etc/passwd")

    folder = press(model, W8A16).folder

    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "model.safetensors",
        "load.py",
        "README.md",
        "tokenizer.json",
        "vocab.txt",
        "1_Pooling/config.json",
    }


def test_progress_rises_to_its_total_in_a_few_hundred_reports(save_model, tmp_path, weights):
    model = save_model({f"{i}.weight": weights(64, 64, seed=i) for i in range(40)})
    (tmp_path / "artifact").mkdir()
    seen = []
    recipe = parse_recipe({"steps": [{"op": "prune", "sparsity": 0.5, "scope": "global"}, W8A16]})

    compress(model, tmp_path / "artifact", recipe, on_progress=seen.append, chunk_bytes=64)

    assert len(seen) <= 3 * 202
    for phase in ("inspect", "measure", "compress"):
        done = [p.done for p in seen if p.phase == phase]
        assert done == sorted(done)
        assert done[-1] == next(p.total for p in seen if p.phase == phase)
    assert {(p.step, p.steps) for p in seen if p.phase == "measure"} == {(1, 2)}


def test_the_report_counts_what_was_read_and_written(save_model, press, weights):
    model = save_model({"a.weight": weights(64, 64), "a.bias": weights(64)})

    report = press(model, {"op": "prune", "sparsity": 0.5}, W8A8).report

    data = 4 * (64 * 64 + 64)
    # A float32 threshold takes two looks at the weights, and the last step counts the writing pass.
    assert [step.bytes_read for step in report.steps] == [2 * 4 * 64 * 64, data]
    assert [step.bytes_written for step in report.steps] == [0, report.artifact.bytes]
    (tensor,) = report.tensors
    assert (tensor.before.dtype, tensor.after.dtype) == ("F32", "I8")
    assert (tensor.before.bytes, tensor.after.bytes) == (4 * 64 * 64, 64 * 64 + 4 * 64)
    assert report.artifact.size_ratio == report.artifact.bytes / report.model.bytes


def test_relative_rmse_is_measured_over_all_steps(save_model, press, weights):
    weight = weights(32, 32)

    pressed = press(save_model({"a.weight": weight}), {"op": "prune", "sparsity": 0.5}, W8A8)

    restored = load_artifact(pressed.folder)["a.weight"].double()
    expected = float((restored - weight).norm() / weight.double().norm())
    assert pressed.report.tensors[0].relative_rmse == pytest.approx(expected, rel=1e-6)
    assert pressed.report.tensors[0].after.sparsity == np.mean((restored == 0).numpy())
