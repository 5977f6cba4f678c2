"""Small models of many architectures, compressed and opened again by transformers."""

import json

import pytest
import torch
import transformers

from jobs.problems import Problem

pytestmark = pytest.mark.slow

DECODER = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 98,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 98,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
T5 = {
    "vocab_size": 101,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 98,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
# The model's class, what its config's class is given, the class that opens it, and the modules that
# stay float for w8a16 and for w8a8; None where the artifact could not be opened and is refused.
MODELS = {
    "Qwen3ForCausalLM": (DECODER, "AutoModelForCausalLM", ["lm_head"], ["lm_head"]),
    "GemmaForCausalLM": (DECODER, "AutoModelForCausalLM", ["lm_head"], ["lm_head"]),
    "MixtralForCausalLM": (
        {**DECODER, "num_local_experts": 4},
        "AutoModelForCausalLM",
        ["lm_head"],
        None,
    ),
    "BertForSequenceClassification": (
        ENCODER,
        "AutoModelForSequenceClassification",
        ["classifier"],
        ["classifier"],
    ),
    "ModernBertForMaskedLM": (
        {**ENCODER, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
        "AutoModelForMaskedLM",
        None,
        ["decoder"],
    ),
    "MambaForCausalLM": (
        {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 1, "state_size": 8},
        "AutoModelForCausalLM",
        [
            "backbone.layers.0.mixer.dt_proj",
            "backbone.layers.0.mixer.out_proj",
            "lm_head",
            "layers.0.mixer.dt_proj",
            "layers.0.mixer.out_proj",
        ],
        ["lm_head"],
    ),
    "T5ForConditionalGeneration": (T5, "AutoModelForSeq2SeqLM", None, ["lm_head"]),
    "ViTForImageClassification": (
        VISION,
        "AutoModelForImageClassification",
        ["classifier"],
        ["classifier"],
    ),
    "CLIPModel": (
        {
            "text_config": {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            "vision_config": VISION,
        },
        "AutoModel",
        [],
        [],
    ),
}


def inputs_of(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 101, (2, 12), generator=generator)
    inputs = {"input_ids": tokens}
    if model.main_input_name == "pixel_values" or "CLIP" in type(model).__name__:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    if model.main_input_name == "pixel_values":
        del inputs["input_ids"]
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[:, :5]
    return inputs


def answer_of(model) -> torch.Tensor:
    with torch.no_grad():
        answer = model.eval()(**inputs_of(model))
    if "logits" in answer:
        return answer.logits.double().ravel()
    return torch.cat([answer.image_embeds, answer.text_embeds]).double().ravel()


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
@pytest.mark.parametrize("name", MODELS)
def test_an_artifact_opens_and_answers_as_before_or_is_refused(tmp_path, press, name, scheme):
    members, opener, *left = MODELS[name]
    ignore = left[["w8a16", "w8a8"].index(scheme)]
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    original = model_class(model_class.config_class(**members))
    original.save_pretrained(tmp_path / "model")
    step = {"op": "quantize", "scheme": scheme}
    if ignore is None:
        with pytest.raises(Problem, match=r"output\.format safetensors") as caught:
            press(tmp_path / "model", step)
        assert caught.value.code in {"nothing_changed", "output_unsupported"}
        return

    folder = press(tmp_path / "model", step).folder
    model, info = getattr(transformers, opener).from_pretrained(folder, output_loading_info=True)

    assert not any(info.values())
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ignore
    assert torch.cosine_similarity(answer_of(model), answer_of(original), dim=0) > 0.999
