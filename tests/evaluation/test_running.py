"""Models run for real, beside what transformers and plain arithmetic say of the same inputs."""

import json
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.folders import TransformersSubject
from evaluation.running import run_artifact, run_original
from jobs.problems import Problem
from jobs.recipe import Evaluate
from tests.evaluation.conftest import CONFIGS, WORDS
from tests.evaluation.test_datasets import archive_of


def sentences(count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(2, 12))) for _ in range(count)]


def run_both(tmp_path, original, artifact, dataset=None, **wanted):
    evaluate, kept = Evaluate(**wanted), tmp_path / "outputs"
    seen: list[int] = []
    opened = partial(TransformersSubject, original=original)
    before = run_original(partial(opened, original), dataset, evaluate, kept, seen.append)
    after = run_artifact(partial(opened, artifact), dataset, evaluate, kept, lambda _: None)
    assert seen == sorted(seen)
    assert seen[-1] == before.rows
    return before, after


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_agrees_wholly_with_itself_on_random_inputs(tmp_path, make_folder, name):
    folder, model = make_folder(name)

    before, after = run_both(tmp_path, folder, folder, rows=5, batch_size=8, max_length=9)

    agreement = after.agreement
    assert before.rows == after.rows == 5
    assert agreement.outputs >= 5
    assert agreement.mean_cosine == pytest.approx(1, abs=1e-9)
    is_logits = hasattr(model, "get_output_embeddings") or "Classification" in type(model).__name__
    if agreement.of == "logits" and name != "bert-scores":
        assert is_logits
        assert agreement.kl_divergence == pytest.approx(0, abs=1e-9)
        assert agreement.top1_agreement == 1
    assert set(before.running.latency_seconds) == {"1", "8"}
    parameters = sum(p.numel() for p in model.parameters())
    assert before.running.weight_bytes >= 4 * parameters


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_perplexity_is_that_of_all_tokens_whatever_the_batch(
    tmp_path, make_folder, write_lines, name, batch_size
):
    folder, model = make_folder(name)
    texts = sentences(17)

    before, _ = run_both(
        tmp_path, folder, folder, write_lines(*({"text": t} for t in texts)), batch_size=batch_size
    )

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    losses = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double().log_softmax(1)
        losses += (-logits[torch.arange(ids.shape[1] - 1), ids[0, 1:]]).tolist()
    assert before.running.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert before.running.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert before.tokens == sum(len(text.split()) for text in texts)
    assert before.running.accuracy is None


@pytest.mark.parametrize("names", [False, True], ids=["numbers", "names"])
def test_accuracy_counts_the_rows_whose_label_is_the_first_choice(
    tmp_path, make_folder, write_lines, names
):
    folder, model = make_folder("bert-classifier")
    texts = sentences(23)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    chosen = [int(row.argmax()) for row in logits]
    labels = [(c + (i % 3 == 0)) % 3 for i, c in enumerate(chosen)]
    shown = [model.config.id2label[label] for label in labels] if names else labels
    rows = [{"text": t, "label": label} for t, label in zip(texts, shown, strict=True)]

    before, after = run_both(tmp_path, folder, folder, write_lines(*rows), batch_size=5)

    assert before.running.accuracy == 15 / 23
    losses = [-row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)]
    assert before.running.loss == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    assert before.running.perplexity is None
    assert after.agreement.outputs == 23


def test_tensors_by_name_are_inputs_and_labels(tmp_path, make_folder):
    folder, model = make_folder("vit")
    pixels = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        chosen = model(pixels).logits.argmax(1)
    path = tmp_path / "data"
    save_file({"pixel_values": pixels, "labels": (chosen + torch.arange(9) % 2) % 5}, path)

    before, _ = run_both(tmp_path, folder, folder, path, rows=100, batch_size=4)

    assert before.rows == 9
    assert before.running.accuracy == 5 / 9
    assert before.tokens is before.running.tokens_per_second is None


def test_what_is_compared_is_what_the_models_give(tmp_path, make_folder, write_lines):
    folder, model = make_folder("bert")
    other = tmp_path / "other"
    model.save_pretrained(other)
    state = load_file(other / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    state[name] = state[name] + 0.5 * torch.randn_like(state[name])
    save_file(state, other / "model.safetensors", {"format": "pt"})
    texts = sentences(6)

    _, after = run_both(
        tmp_path, folder, other, write_lines(*({"text": t} for t in texts)), batch_size=4
    )

    changed = transformers.BertModel.from_pretrained(other).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cosines = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            a, b = (m(**inputs).last_hidden_state[0].mean(0).double() for m in (model, changed))
        cosines.append(float(torch.cosine_similarity(a, b, dim=0)))
    assert after.agreement.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert after.agreement.least_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert max(cosines) < 0.999


def test_few_places_of_long_rows_are_kept_spread_over_them(tmp_path, make_folder, monkeypatch):
    folder, _ = make_folder("llama")
    monkeypatch.setattr("evaluation.running._MOST_KEPT_BYTES", 4 * 40 * 21)

    _, after = run_both(tmp_path, folder, folder, rows=6, batch_size=2, max_length=30)

    # Eight places of the first rows, until there is no more room.
    assert after.agreement.outputs == 21
    assert load_file(tmp_path / "outputs")["outputs"].shape == (21, 40)


def test_a_change_that_shows_after_the_first_token_alone_is_seen(tmp_path, make_folder):
    folder, model = make_folder("llama")
    other = tmp_path / "other"
    model.save_pretrained(other)
    state = load_file(other / "model.safetensors")
    for name in state:
        if "q_proj" in name or "k_proj" in name:
            state[name] = 50 * torch.randn_like(state[name])
    save_file(state, other / "model.safetensors", {"format": "pt"})

    _, after = run_both(tmp_path, folder, other, rows=4, max_length=20)

    assert after.agreement.outputs == 32
    assert after.agreement.mean_cosine < 0.9999


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_perplexity(tmp_path, make_folder, side):
    folder, _ = make_folder("gpt2")
    ids = torch.randint(2, 14, (5, 9), generator=torch.Generator().manual_seed(2))
    save_file({"input_ids": ids}, tmp_path / "plain")
    none, pads = torch.zeros(5, 4, dtype=torch.int64), torch.ones_like(ids)
    order = [none, ids] if side == "left" else [ids, none]
    mask = torch.cat([none, pads] if side == "left" else [pads, none], 1)
    save_file(
        {
            "input_ids": torch.cat(order, 1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        },
        tmp_path / "padded",
    )

    plain, padded = (
        run_both(tmp_path, folder, folder, tmp_path / name)[0] for name in ("plain", "padded")
    )

    assert padded.running.perplexity == pytest.approx(plain.running.perplexity, rel=1e-5)
    assert padded.tokens == 45


def test_rows_longer_than_the_model_has_places_for_are_cut(tmp_path, make_folder, write_lines):
    folder, _ = make_folder("gpt2")

    before, _ = run_both(tmp_path, folder, folder, write_lines({"text": "cat " * 500}), rows=2)

    assert before.tokens == 62


def test_a_score_has_no_distribution_and_is_compared_over_all_rows(tmp_path, make_folder):
    folder, model = make_folder("bert-scores")
    other = tmp_path / "other"
    model.save_pretrained(other)
    state = load_file(other / "model.safetensors")
    state["classifier.weight"] = -state["classifier.weight"]
    save_file(state, other / "model.safetensors", {"format": "pt"})

    _, same = run_both(tmp_path, folder, folder, rows=6, batch_size=4, max_length=9)
    _, turned = run_both(tmp_path, folder, other, rows=6, batch_size=4, max_length=9)

    assert same.agreement.kl_divergence is same.agreement.top1_agreement is None
    assert same.agreement.mean_cosine == pytest.approx(1, abs=1e-9)
    assert turned.agreement.mean_cosine == pytest.approx(-1, abs=1e-9)


def test_a_model_that_sees_the_next_token_has_no_perplexity(tmp_path, make_folder):
    folder, _ = make_folder("bert-lm")

    before, _ = run_both(tmp_path, folder, folder, rows=2, max_length=9)

    assert before.running.perplexity is before.running.loss is None


def test_an_encoder_decoder_begins_its_answer_for_tensors_too(tmp_path, make_folder):
    folder, _ = make_folder("t5")
    save_file({"input_ids": torch.ones(3, 5, dtype=torch.int64)}, tmp_path / "data")

    before, _ = run_both(tmp_path, folder, folder, tmp_path / "data")

    assert before.rows == 3


def test_no_forward_has_more_rows_than_were_asked_for(tmp_path, make_folder):
    folder, _ = make_folder("bert")

    before, _ = run_both(tmp_path, folder, folder, rows=3, batch_size=2, max_length=9)

    assert set(before.running.latency_seconds) == {"1"}


def change_config(folder, **members):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"architectures": ["EvilModel"]}, "'EvilModel'"),
        ({"architectures": []}, "None"),
        ({"architectures": ["AutoModel"]}, "'AutoModel'"),
        ({"architectures": ["pipeline"]}, "'pipeline'"),
        ({"architectures": ["LlamaForCausalLM"]}, "which are not of one model"),
        ({"architectures": [{"a": 1}]}, "architecture"),
        ({"architectures": ["PreTrainedModel"]}, "'PreTrainedModel'"),
    ],
)
def test_only_classes_of_the_library_that_fit_the_config_are_run(
    tmp_path, make_folder, members, said
):
    folder, _ = make_folder("bert")
    change_config(folder, **members)

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder)

    assert caught.value.code == "unknown_architecture"
    assert said in caught.value.detail


def test_code_that_a_folder_brings_is_not_run(tmp_path, make_folder):
    folder, _ = make_folder("bert")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    change_config(folder, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})

    run_both(tmp_path, folder, folder, rows=1)

    assert not (tmp_path / "was_run").exists()


def test_a_folder_that_lacks_weights_is_not_run_with_random_ones(tmp_path, make_folder):
    folder, _ = make_folder("bert")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.0.output.dense.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(Problem, match=r"lacks 1 weights .* 'encoder.layer.0.output.dense.weight'"):
        run_both(tmp_path, folder, folder)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("bert", {"hidden_size": "x"}),
        ("bert", {"dtype": "nonsense"}),
        ("bert", {"id2label": [1]}),
        ("resnet", {"image_size": 1_000_000}),
        ("resnet", {"image_size": [1, 2, 3]}),
        ("resnet", {"image_size": "224"}),
    ],
)
def test_a_config_of_nonsense_is_a_problem_with_words(tmp_path, make_folder, name, members):
    folder, _ = make_folder(name)
    change_config(folder, **members)

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder, rows=2, max_length=9)

    assert caught.value.code == "evaluation_failed"
    assert len(caught.value.detail) < 600


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("tokenizer_config.json", {"vocab": "/etc/passwd"}),
        ("tokenizer_config.json", {"vocab_file": "../other/vocab.txt"}),
        ("special_tokens_map.json", {"merges": "/etc/passwd"}),
    ],
)
def test_a_tokenizer_that_names_files_is_refused(tmp_path, make_folder, write_lines, name, members):
    folder, _ = make_folder("bert")
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(known | members))

    with pytest.raises(Problem, match="names a file"):
        run_both(tmp_path, folder, folder, write_lines({"text": "a"}))


def test_answers_that_are_no_numbers_fail(tmp_path, make_folder):
    folder, _ = make_folder("bert")
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.0.output.dense.bias"][0] = math.inf
    save_file(state, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(Problem, match="NaN or infinity"):
        run_both(tmp_path, folder, folder)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": 3}], "'3' is none of the model's 3 classes"),
        ([{"text": "a", "label": "great"}], "'great' is none of the model's 3 classes"),
        ([{"text": "a", "label": 1.5}], "none of the model's 3"),
        ([{"text": "a", "label": True}], "none of the model's 3"),
        ([{"text": "a", "label": None}], "none of the model's 3"),
    ],
)
def test_labels_that_the_model_does_not_have_are_named(
    tmp_path, make_folder, write_lines, rows, said
):
    folder, _ = make_folder("bert-classifier")

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder, write_lines(*rows))

    assert caught.value.code == "invalid_dataset"
    assert said in caught.value.detail


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pixels": torch.zeros(2, 3, 16, 16)}, "takes 'pixel_values'"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16), "x": torch.zeros(2)}, "'x'"),
        ({"pixel_values": torch.zeros(2, 3, 8, 8)}, "does not take"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.tensor([0, 5])}, "0 to 5"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.zeros(2, 4)}, "labels"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_named(tmp_path, make_folder, fields, said):
    folder, _ = make_folder("vit")
    save_file(fields, tmp_path / "data")

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder, tmp_path / "data")

    assert caught.value.code == "invalid_dataset"
    assert said in caught.value.detail


@pytest.mark.parametrize(
    "fields",
    [
        {"input_ids": torch.ones(3, dtype=torch.int64)},
        {"input_ids": torch.ones(3, 4, 5, dtype=torch.int64)},
        {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.zeros(3, 4)},
        {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 1, 1, 4)},
        {"input_ids": torch.ones(3, 4).long(), "past_key_values": torch.ones(3, 4)},
    ],
)
def test_tensors_of_odd_shapes_are_a_problem_of_the_data_set(tmp_path, make_folder, fields):
    folder, _ = make_folder("llama")
    save_file(fields, tmp_path / "data")

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder, tmp_path / "data")

    assert caught.value.code == "invalid_dataset"


def test_text_that_no_tokenizer_takes_is_a_problem_of_the_data_set(tmp_path, make_folder):
    folder, _ = make_folder("bert")
    (tmp_path / "lines").write_text('{"text": "\\ud800 cat"}\n')

    with pytest.raises(Problem) as caught:
        run_both(tmp_path, folder, folder, tmp_path / "lines")

    assert caught.value.code == "invalid_dataset"


def test_token_ids_beyond_the_vocabulary_are_named(tmp_path, make_folder):
    folder, _ = make_folder("bert")
    save_file({"input_ids": torch.tensor([[1, 2], [3, 40]])}, tmp_path / "data")

    with pytest.raises(Problem, match=r"input_ids .* 40"):
        run_both(tmp_path, folder, folder, tmp_path / "data")


def test_text_without_a_tokenizer_is_refused(tmp_path, make_folder, write_lines):
    folder, _ = make_folder("vit")
    for path in folder.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(Problem, match="no tokenizer that opens"):
        run_both(tmp_path, folder, folder, write_lines({"text": "a"}))


def test_images_are_run_through_the_folders_own_processor_and_judged_by_their_folders(
    tmp_path, make_folder
):
    folder, model = make_folder("vit")
    config = json.loads((folder / "config.json").read_text())
    names = {str(i): f"class{i}" for i in range(5)}
    labelled = config | {"id2label": names, "label2id": {n: int(i) for i, n in names.items()}}
    (folder / "config.json").write_text(json.dumps(labelled))
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    chance = np.random.default_rng(0)
    images = {
        f"class{i % 5}/{i}.png": Image.fromarray(chance.integers(0, 256, (20, 30, 3), np.uint8))
        for i in range(11)
    }

    before, after = run_both(
        tmp_path, folder, folder, archive_of(tmp_path / "images", images), batch_size=4
    )

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    correct = 0
    with torch.no_grad():
        for name, image in images.items():
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
            correct += f"class{int(model(pixels).logits.argmax())}" == name.split("/")[0]
    assert before.running.accuracy == after.running.accuracy == pytest.approx(correct / 11)
    assert (before.rows, after.agreement.outputs) == (11, 11)


def test_a_folder_without_a_processor_runs_no_images(tmp_path, make_folder):
    folder, _ = make_folder("vit")
    path = archive_of(tmp_path / "images", {"a/a.png": Image.new("RGB", (4, 4))})

    with pytest.raises(Problem, match=r"the model's folder no preprocessor_config.json") as caught:
        run_both(tmp_path, folder, folder, path)
    assert caught.value.code == "evaluation_failed"
