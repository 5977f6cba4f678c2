"""Whole calibrations over files, beside the same done to whole models in memory."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calibration.running import calibrate
from engine.pipeline import compress
from engine.verification import verify
from engine.verified_forms import claims_of
from jobs.problems import Problem
from jobs.recipe import parse_recipe

DATASET = "ds_" + "0" * 64
WANDA = {"op": "prune", "method": "wanda", "sparsity": 0.5}
W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                              decoder_start_token_id=0)
    ),
}  # fmt: skip


@pytest.fixture
def press(tmp_path):
    """Have a model calibrated on random tokens, compressed and verified; give all of it."""

    def press(name, *steps, dtype=torch.float32, outlier=1.0, **calibrated):
        torch.manual_seed(0)
        model = MODELS[name]().eval().to(dtype)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name.lower() and parameter_name.endswith("weight"):
                parameter.data[3] = outlier
        folders = {part: tmp_path / part for part in ("model", "work", "artifact")}
        for folder in folders.values():
            folder.mkdir()
        model.save_pretrained(folders["model"])
        ids = torch.randint(60, (20, 16), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[::2, 11:] = 0
        dataset = tmp_path / "data"
        save_file({"input_ids": ids, "attention_mask": mask}, dataset)
        section = {"dataset": DATASET, "rows": 16, "batch_size": 3, **calibrated}
        recipe = parse_recipe({"steps": list(steps), "calibrate": section})
        found = calibrate(folders["model"], dataset, recipe, folders["work"], lambda *_: None)
        report = compress(
            folders["model"], folders["artifact"], recipe,
            on_progress=lambda _: None, calibrated=folders["work"],
        )  # fmt: skip
        verify(
            folders["model"], folders["artifact"], recipe, claims_of(report),
            on_progress=lambda _: None, calibrated=folders["work"],
        )  # fmt: skip
        inputs = [{"input_ids": i, "attention_mask": m} for i, m in zip(
            ids[:16].split(3), mask[:16].split(3), strict=True)]  # fmt: skip
        return model, inputs, folders, found, report

    return press


def inputs_of(model, module, inputs):
    """Give a module's inputs over all tokens that are no padding, as the model is now."""
    kept = []
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        for batch in inputs:
            extra = {"decoder_input_ids": torch.zeros(len(batch["input_ids"]), 4).long()}
            model(**batch, **(extra if model.config.is_encoder_decoder else {}))
    hook.remove()
    found = []
    for batch, values in zip(inputs, kept, strict=True):
        mask = batch["attention_mask"].bool()
        is_masked = values.shape[:2] == mask.shape
        found.append(values[mask] if is_masked else values.flatten(0, -2))
    return torch.cat(found)


def linears_by_block(model):
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    blocks = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if isinstance(module, kinds) and numbers:
            blocks.setdefault(".".join(parts[: numbers[0] + 1]), {})[name] = module
    return blocks


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_wanda_prunes_what_it_would_in_a_whole_model_block_by_block(press, name):
    model, inputs, folders, _, report = press(name, WANDA)

    written = load_file(folders["artifact"] / "model.safetensors")
    for linears in linears_by_block(model).values():
        norms = {n: inputs_of(model, m, inputs).square().sum(0).sqrt() for n, m in linears.items()}
        for linear, module in linears.items():
            is_transposed = not isinstance(module, torch.nn.Linear)
            weight = module.weight.data.T if is_transposed else module.weight.data
            scores = weight.abs() * norms[linear]
            pruned = scores.argsort(dim=1, stable=True)[:, : weight.shape[1] // 2]
            weight.scatter_(1, pruned, 0.0)
            found = written[f"{linear}.weight"].T if is_transposed else written[f"{linear}.weight"]
            # Sums in another order may take another of two products that are all but equal.
            assert (found != weight).float().mean() < 0.002
            assert ((found == 0).sum(1) == weight.shape[1] // 2).all()
    changed = {tensor.name: tensor for tensor in report.tensors}
    assert {f"{n}.weight" for ls in linears_by_block(model).values() for n in ls} == set(changed)
    assert all(t.after.sparsity == pytest.approx(0.5, abs=0.01) for t in changed.values())
    assert report.steps[0].method == "wanda"
    assert report.steps[0].weights_pruned == sum(w.numel() // 2 for w in (
        m.weight for ls in linears_by_block(model).values() for m in ls.values()))  # fmt: skip


def test_wanda_prunes_two_of_four_and_the_rest_is_rounded(press):
    _, _, folders, _, report = press("llama", {**WANDA, "sparsity": None, "structure": "2:4"}, W8A8)

    written = load_file(folders["artifact"] / "model.safetensors")
    weights = [v for n, v in written.items() if v.dtype == torch.int8]
    assert len(weights) == 14
    for weight in weights:
        assert ((weight.reshape(-1, 4) == 0).sum(1) >= 2).all()
    assert report.verification is None
    assert all(tensor.max_error_steps <= 0.502 for tensor in report.tensors)


def test_wanda_over_whole_tensors_takes_more_of_some_rows_than_of_others(press):
    _, _, folders, _, report = press("llama", {**WANDA, "scope": "tensor"})

    written = load_file(folders["artifact"] / "model.safetensors")
    pruned = {tensor.name for tensor in report.tensors}
    assert len(pruned) == 14
    for name in pruned:
        zeros = (written[name] == 0).sum(1)
        assert zeros.sum() == written[name].numel() // 2
        assert zeros.min() < zeros.max()
    assert report.steps[0].weights_pruned == sum(written[n].numel() // 2 for n in pruned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [[W8A16], [{**W8A16, "group_size": 16}], [WANDA, W8A8]], ids=str)
def test_gptq_leaves_less_of_an_error_than_plain_rounding_in_every_module(press, dtype, steps):
    *first, last = steps

    _, _, folders, found, report = press("llama", *first, {**last, "method": "gptq"}, dtype=dtype)

    assert len(found.error_ratios) == 14
    assert max(found.error_ratios.values()) <= 1
    assert sorted(found.error_ratios.values())[7] < 0.9
    assert (found.rows, found.tokens, found.blocks) == (16, 16 * 16 - 8 * 5, 2)
    assert all(tensor.max_error_steps <= 0.502 for tensor in report.tensors)
    opened = transformers.AutoModelForCausalLM.from_pretrained(folders["artifact"])
    assert opened(torch.arange(5)[None]).logits.isfinite().all()


def test_a_weight_that_gptq_rounded_gives_the_outputs_that_the_report_promises(press):
    model, inputs, folders, found, _ = press("llama", {**W8A8, "method": "gptq"})

    name = "model.layers.0.mlp.gate_proj"
    written = load_file(folders["artifact"] / "model.safetensors")
    plain_scale = written[f"{name}.weight_scale"]
    before = model.get_submodule(name).weight.data
    nearest = (before / plain_scale).round().clamp(-128, 127) * plain_scale
    chosen = written[f"{name}.weight"].float() * plain_scale
    # What reaches it was rounded on its way, so the inputs are those of a model that was, too.
    artifact = transformers.AutoModelForCausalLM.from_pretrained(folders["artifact"])
    for other in ("q", "k", "v", "o"):
        key = f"model.layers.0.self_attn.{other}_proj"
        weight = written[f"{key}.weight"].float() * written[f"{key}.weight_scale"]
        model.get_submodule(key).weight.data = weight
    seen = inputs_of(model, model.get_submodule(name), inputs)
    errors = [(seen @ (before - weight).T).square().sum() for weight in (chosen, nearest)]
    assert float(errors[0] / errors[1]) == pytest.approx(found.error_ratios[name], rel=0.02)
    assert artifact is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_smoothing_changes_no_bit_of_what_the_model_says_and_makes_activations_even(press, dtype):
    model, inputs, folders, found, report = press(
        "llama", {**W8A8, "smooth": 0.5}, dtype=dtype, outlier=64.0
    )

    assert set(found.smoothed_norms) == {
        f"model.layers.{i}.{n}" for i in (0, 1)
        for n in ("input_layernorm", "post_attention_layernorm")
    }  # fmt: skip
    smoothed = MODELS["llama"]().eval().to(dtype)
    smoothed.load_state_dict(model.state_dict())
    for path in sorted((folders["work"] / "smoothed").glob("*.safetensors")):
        smoothed.load_state_dict(load_file(path), strict=False)
    with torch.no_grad():
        assert torch.equal(smoothed(**inputs[0]).logits, model(**inputs[0]).logits)
    query = "model.layers.0.self_attn.q_proj"
    before, after = (
        inputs_of(m, m.get_submodule(query), inputs).abs().amax(0) for m in (model, smoothed)
    )
    assert after.max() / after.median() < 0.5 * before.max() / before.median()
    changed = {tensor.name for tensor in report.tensors}
    assert len(changed) == 14
    written = load_file(folders["artifact"] / "model.safetensors")
    assert torch.equal(
        written["model.layers.1.input_layernorm.weight"],
        smoothed.state_dict()["model.layers.1.input_layernorm.weight"],
    )


def test_norms_whose_outputs_are_added_to_later_are_left_alone(press):
    with pytest.raises(Problem, match="smooth found no norm") as caught:
        press("bert", {**W8A8, "smooth": 0.5}, outlier=64.0)

    assert caught.value.code == "nothing_changed"


def test_gptq_after_smoothing_and_wanda_is_one_recipe(press):
    _, _, folders, found, _ = press(
        "llama", WANDA, {**W8A8, "method": "gptq", "smooth": 0.5}, outlier=16.0
    )

    assert len(found.error_ratios) == 14
    assert len(found.smoothed_norms) == 4
    written = load_file(folders["artifact"] / "model.safetensors")
    for weight in (v for v in written.values() if v.dtype == torch.int8):
        assert ((weight == 0).sum(1) >= weight.shape[1] // 2).all()


def test_a_module_that_no_row_reaches_is_named(press, monkeypatch):
    forward = transformers.models.llama.modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        transformers.models.llama.modeling_llama.LlamaMLP,
        "forward",
        lambda self, x: self.down_proj(torch.zeros(1, 48)).sum() + x,
    )
    assert forward

    with pytest.raises(Problem, match=r"reaches 2 of the modules, such as .*gate_proj") as caught:
        press("llama", WANDA)

    assert caught.value.code == "invalid_dataset"


def test_equal_data_and_recipes_give_equal_bytes(press, tmp_path):
    _, _, folders, _, _ = press("llama", WANDA, {**W8A16, "method": "gptq"})
    first = (folders["artifact"] / "model.safetensors").read_bytes()
    for folder in folders.values():
        folder.rename(folder.with_name(f"old-{folder.name}"))

    _, _, folders, _, _ = press("llama", WANDA, {**W8A16, "method": "gptq"})

    assert (folders["artifact"] / "model.safetensors").read_bytes() == first
