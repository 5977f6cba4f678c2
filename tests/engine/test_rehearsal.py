"""Jobs that aim at a size or an error: what stays float, and what comes out."""

import hashlib
import math

import pytest
import torch
import transformers

from engine import pressing, rehearsal
from engine.pipeline import compress
from engine.torch_kernels import TorchKernels
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from planning.forecast import forecast
from planning.memory_model import DEFAULT_LEVELS

W8A16 = {"op": "quantize", "scheme": "w8a16"}
SCHEMES = pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
LLAMA = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def float_names(pressed):
    return {one.name for one in pressed.report.sensitivity if one.kept_float}


@pytest.fixture
def many(save_model, weights):
    """Sixty matrices of several shapes; every third has outliers, which harm its rounding."""
    tensors = {}
    for i in range(60):
        tensor = weights(32 + 8 * (i % 4), 48 + 16 * (i % 3), dtype=torch.bfloat16, seed=i)
        if i % 3 == 0:
            tensor[:, 0] *= 4 + i
        tensors[f"layer.{i}.weight"] = tensor
    return save_model(tensors | {"norm.weight": weights(64)}, shards=3)


@pytest.fixture
def llama(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@SCHEMES
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_target_is_met_from_below_within_half_a_percent(many, press, scheme, part):
    step = W8A16 | {"scheme": scheme}
    least, most = size_of(press(many, step).folder), size_of(many)
    target = least + int(part * (most - least))

    pressed = press(many, step | {"target_bytes": target})

    assert 0.995 * target <= size_of(pressed.folder) <= target
    kept, left = (
        [one.relative_rmse for one in pressed.report.sensitivity if one.kept_float is is_kept]
        for is_kept in (True, False)
    )
    assert len(kept) + len(left) == 60
    assert sum(kept) / len(kept) > sum(left) / len(left)


@pytest.mark.parametrize("chunk_bytes", [64, 2**19])
@pytest.mark.parametrize("step", [W8A16, W8A16 | {"scheme": "w8a8"}, W8A16 | {"group_size": 16}])
def test_the_errors_of_the_rehearsal_are_those_of_the_job_without_a_target(
    many, press, step, chunk_bytes
):
    whole = press(many, step, chunk_bytes=chunk_bytes)
    target = size_of(whole.folder) + 50_000

    aimed = press(many, step | {"target_bytes": target}, chunk_bytes=chunk_bytes)

    expected = {tensor.name: tensor.relative_rmse for tensor in whole.report.tensors}
    assert {one.name: one.relative_rmse for one in aimed.report.sensitivity} == expected


def test_the_errors_of_transposed_weights_are_measured_by_column(tmp_path, press):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=16, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    output = {"format": "safetensors"}
    whole = press(tmp_path / "gpt2", W8A16, output=output, chunk_bytes=128)
    target = size_of(whole.folder) + 40_000

    aimed = press(tmp_path / "gpt2", W8A16 | {"target_bytes": target}, output=output)

    expected = {tensor.name: tensor.relative_rmse for tensor in whole.report.tensors}
    found = {one.name: one.relative_rmse for one in aimed.report.sensitivity}
    assert found == pytest.approx(expected, rel=1e-12)
    assert target - 4096 < size_of(aimed.folder) <= target


def test_the_smallest_target_that_a_refusal_names_is_met_exactly(many, press):
    with pytest.raises(Problem) as caught:
        press(many, W8A16 | {"target_bytes": 1000})

    smallest = caught.value.extra["smallest_bytes"]
    pressed = press(many, W8A16 | {"target_bytes": smallest})

    assert caught.value.code == "target_unreachable"
    assert caught.value.errors[0].pointer == "/steps/0/target_bytes"
    assert size_of(pressed.folder) == smallest
    assert not float_names(pressed)
    with pytest.raises(Problem, match="target_unreachable"):
        press(many, W8A16 | {"target_bytes": smallest - 1})


def test_a_llama_at_a_target_keeps_fused_weights_together(llama, press):
    least = size_of(press(llama, W8A16).folder)
    target = least + (size_of(llama) - least) // 2

    pressed = press(llama, W8A16 | {"target_bytes": target})

    assert 0.995 * target <= size_of(pressed.folder) <= target
    kept = float_names(pressed)
    for layer in range(LLAMA["num_hidden_layers"]):
        for group in FUSED:
            names = {
                name
                for name in (one.name for one in pressed.report.sensitivity)
                if f"layers.{layer}." in name and name.split(".")[-2] in group
            }
            assert len(names) == len(group)
            assert names <= kept or names.isdisjoint(kept)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        pressed.folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = transformers.AutoModelForCausalLM.from_pretrained(llama)
    tokens = torch.arange(1, 33).reshape(2, 16)
    with torch.no_grad():
        answer, expected = (m.eval()(tokens).logits.double().ravel() for m in (model, original))
    assert float(torch.cosine_similarity(answer, expected, dim=0)) > 0.999


@pytest.mark.parametrize("prune", [{"scope": "tensor"}, {"scope": "row"}, {"scope": "global"}])
def test_the_choice_does_not_depend_on_threads_chunks_or_device(many, press, monkeypatch, prune):
    steps = ({"op": "prune", "sparsity": 0.4, **prune}, W8A16)
    target = size_of(press(many, *steps).folder) + 40_000
    aimed = (steps[0], W8A16 | {"target_bytes": target})

    first = press(many, *aimed, threads=1)
    others = [
        press(many, *aimed, threads=3, chunk_bytes=200),
        press(many, *aimed, chunk_bytes=2**13),
    ]
    monkeypatch.setattr(pressing, "kernels_for", lambda *_: TorchKernels("cpu"))
    others.append(press(many, *aimed))

    assert float_names(first)
    assert all(digests(other.folder) == digests(first.folder) for other in others)


def test_only_rounding_counts_and_what_stays_float_is_pruned(many, press):
    prune = {"op": "prune", "sparsity": 0.5}
    pruned = press(many, prune)
    rounded = press(pruned.folder, W8A16)
    limit = sorted(tensor.relative_rmse for tensor in rounded.report.tensors)[40]

    pressed = press(many, prune, W8A16 | {"max_relative_rmse": limit})

    errors = {tensor.name: tensor.relative_rmse for tensor in rounded.report.tensors}
    found = {one.name: one.relative_rmse for one in pressed.report.sensitivity}
    assert found == pytest.approx(errors, rel=1e-12)
    assert float_names(pressed) == {name for name, error in errors.items() if error > limit}
    assert len(float_names(pressed)) == 19
    for name in float_names(pressed):
        assert torch.equal(pressed.tensors[name], pruned.tensors[name])
    # Most of what a pruned weight loses is what was pruned.
    assert min(tensor.relative_rmse for tensor in pressed.report.tensors) > 2 * limit


def test_no_weight_that_becomes_int8_is_changed_by_more_than_the_limit(many, press):
    errors = [tensor.relative_rmse for tensor in press(many, W8A16).report.tensors]
    limit = sorted(errors)[30]

    pressed = press(many, W8A16 | {"max_relative_rmse": limit})

    assert max(tensor.relative_rmse for tensor in pressed.report.tensors) == limit
    assert len(pressed.report.tensors) == 31
    assert {skip.name for skip in pressed.report.skipped} == float_names(pressed)


def test_the_rehearsal_is_counted_and_told(many, save_model, weights, tmp_path):
    recipe = parse_recipe({"steps": [W8A16 | {"target_bytes": 300_000}]})
    told = []
    (tmp_path / "out").mkdir()

    report = compress(many, tmp_path / "out", recipe, on_progress=told.append)

    weights_bytes = sum(
        tensor.nbytes
        for name, tensor in open_checkpoint(many).tensors.items()
        if name != "norm.weight"
    )
    assert report.steps[0].bytes_read == 2 * weights_bytes + 4 * 64
    measured = [progress for progress in told if progress.phase == "measure"]
    assert (measured[0].done, measured[-1].done) == (0, weights_bytes)
    assert measured[-1].total == weights_bytes


@pytest.mark.parametrize("fault", [math.nan, -math.inf])
def test_a_weight_that_is_not_finite_fails_before_anything_is_written(
    save_model, weights, press, tmp_path, fault
):
    bad = weights(8, 8)
    bad[3, 4] = fault
    model = save_model({"a.weight": weights(8, 8), "b.weight": bad})

    with pytest.raises(Problem) as caught:
        press(model, W8A16 | {"max_relative_rmse": 0.5})

    assert caught.value.code == "non_finite_weight"
    assert caught.value.extra == {"tensor": "b.weight", "index": [3, 4]}
    assert not list((tmp_path / "artifact-1").iterdir())


def test_a_disk_budget_is_kept_where_an_error_decides_the_size(many, press):
    least = size_of(press(many, W8A16).folder)

    with pytest.raises(Problem) as caught:
        press(many, W8A16 | {"max_relative_rmse": 0.009}, budget={"disk": least})

    assert caught.value.code == "disk_budget_exceeded"
    fitting = press(
        many,
        W8A16 | {"max_relative_rmse": 0.009},
        budget={"disk": caught.value.extra["smallest_bytes"]},
    )
    assert size_of(fitting.folder) == caught.value.extra["smallest_bytes"]


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_what_a_job_reads_and_writes_was_planned(many, press, scope):
    steps = ({"op": "prune", "sparsity": 0.5, "scope": scope}, W8A16 | {"target_bytes": 300_000})
    recipe = parse_recipe({"steps": list(steps)})

    planned = forecast(open_checkpoint(many), recipe, DEFAULT_LEVELS).prediction
    report = press(many, *steps).report

    assert [s.bytes_read for s in planned.steps] == [s.bytes_read for s in report.steps]
    assert planned.artifact_bytes == 300_000
    # What the index and the config take of a target depends on what stays float.
    assert planned.steps[-1].bytes_written == pytest.approx(report.artifact.bytes, rel=0.03)


@pytest.mark.parametrize("structure", [{"sparsity": 0.5}, {"structure": "2:4"}])
def test_the_smallest_memory_budget_of_the_plan_is_enough(many, press, structure):
    steps = ({"op": "prune", **structure}, W8A16 | {"target_bytes": 300_000})
    with pytest.raises(Problem) as caught:
        press(many, *steps, budget={"host_memory": 2**20})

    smallest = caught.value.extra["smallest_bytes"]
    # The same process holds a little more by now than when it was asked.
    pressed = press(many, *steps, budget={"host_memory": smallest + 8 * 2**20})

    assert float_names(pressed)


@pytest.mark.parametrize("prune", [[], [{"op": "prune", "structure": "2:4"}]])
def test_an_artifact_with_floats_among_int8_is_verified(many, press, prune):
    steps = [*prune, W8A16 | {"target_bytes": 300_000}]

    pressed = press(many, *steps)

    assert float_names(pressed)
    assert pressed.verification.tensors == 61


def test_a_job_without_an_aim_has_no_rehearsal(many, press, monkeypatch):
    monkeypatch.delattr(rehearsal, "rehearse")

    assert press(many, W8A16).report.sensitivity == ()
