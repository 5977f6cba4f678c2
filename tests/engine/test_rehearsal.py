"""Jobs that aim at a size or an error: what stays float, and what comes out."""

import hashlib

import pytest
import torch
import transformers

from jobs.problems import Problem

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


def test_the_errors_of_the_rehearsal_are_those_of_the_job_without_a_target(many, press):
    whole = press(many, W8A16)
    least = size_of(whole.folder)

    aimed = press(many, W8A16 | {"target_bytes": least + 50_000})

    expected = {tensor.name: tensor.relative_rmse for tensor in whole.report.tensors}
    found = {one.name: one.relative_rmse for one in aimed.report.sensitivity}
    assert found == expected


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
