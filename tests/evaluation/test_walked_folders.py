"""Models run block by block, beside the same models run whole by transformers itself."""

import importlib.util
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.pipeline import compress
from evaluation.folders import TransformersSubject
from evaluation.running import run_artifact, run_original
from evaluation.skeletons import Skeleton
from evaluation.walked_folders import WalkedSubject
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import Evaluate, parse_recipe
from planning.stored_weights import as_floats
from tests.evaluation.conftest import CONFIGS, kinds_of
from tests.evaluation.test_running import sentences

ROWS = {"rows": 7, "batch_size": 2, "max_length": 9}
#: For all rows together, and for no more than one batch.
ROOMS = [2**30, 0]


def walked(folder, original, room=2**30):
    checkpoint = open_checkpoint(folder)
    return partial(WalkedSubject, checkpoint, kinds_of(as_floats(checkpoint)), original, room)


def run_both(tmp_path, original, artifact, subjects, dataset=None, **wanted):
    """Run a model and its artifact; give what was said of both, and the original's outputs."""
    evaluate, kept = Evaluate(**{**ROWS, **wanted}), tmp_path / "outputs"
    before = run_original(subjects(original, original), dataset, evaluate, kept, lambda _: None)
    outputs = load_file(kept)["outputs"]
    after = run_artifact(subjects(artifact, original), dataset, evaluate, kept, lambda _: None)
    return before, after, outputs


def whole(folder, original):
    return partial(TransformersSubject, folder, original)


def compare(tmp_path, original, artifact, dataset=None, room=2**30, **wanted):
    """Check that both ways of running say the same of a model and of its artifact."""
    one, other = (
        run_both(tmp_path, original, artifact, subjects, dataset, **wanted)
        for subjects in (whole, partial(walked, room=room))
    )
    torch.testing.assert_close(other[2], one[2], rtol=1e-5, atol=1e-6)
    for expected, found in zip(one[:2], other[:2], strict=True):
        assert (found.rows, found.tokens) == (expected.rows, expected.tokens)
        for name in ("loss", "perplexity", "accuracy"):
            assert_near(getattr(found.running, name), getattr(expected.running, name))
        assert found.running.latency_seconds == {}
        assert found.running.blocks > 0 == expected.running.blocks
    expected, found = one[1].agreement, other[1].agreement
    assert (found.outputs, found.of) == (expected.outputs, expected.of)
    for name in ("mean_cosine", "least_cosine", "kl_divergence", "top1_agreement"):
        assert_near(getattr(found, name), getattr(expected, name))
    return other


def assert_near(found, expected):
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_says_the_same_as_where_it_is_run_whole(tmp_path, make_folder, name):
    folder, _ = make_folder(name)

    compare(tmp_path, folder, folder)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", ["llama", "bert-classifier"])
def test_what_data_say_is_the_same_however_many_rows_go_together(
    tmp_path, make_folder, write_lines, name, room
):
    folder, _ = make_folder(name)
    labels = {"label": 1} if name == "bert-classifier" else {}
    dataset = write_lines(*({"text": text, **labels} for text in sentences(11)))

    before, _, _ = compare(tmp_path, folder, folder, dataset, room, rows=20, batch_size=3)

    assert before.rows == 11
    found = before.running
    assert (found.accuracy if labels else found.perplexity) is not None


def artifact_of(tmp_path, folder, step, **more):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    recipe = parse_recipe({"steps": [{"op": "quantize"} | step], **more})
    compress(folder, artifact, recipe, on_progress=lambda _: None)
    return artifact


@pytest.mark.parametrize(
    ("name", "step", "dtype"),
    [
        ("llama", {"scheme": "w8a16"}, torch.bfloat16),
        ("llama", {"scheme": "w8a16", "group_size": 16}, torch.float32),
        ("llama", {"scheme": "w8a16", "embeddings": True, "include": ["*"]}, torch.bfloat16),
        ("llama", {"scheme": "w8a8"}, torch.float32),
        ("llama", {"scheme": "w8a8"}, torch.bfloat16),
        ("bert", {"scheme": "w8a8", "embeddings": True}, torch.float32),
        ("t5", {"scheme": "w8a8"}, torch.float32),
        ("vit", {"scheme": "w8a16"}, torch.float32),
    ],
)
def test_an_artifact_says_the_same_as_where_transformers_opens_it(
    tmp_path, make_folder, name, step, dtype
):
    folder, model = make_folder(name)
    model.to(dtype).save_pretrained(folder)
    artifact = artifact_of(tmp_path, folder, step)

    _, after, _ = compare(tmp_path, folder, artifact)

    # Something was rounded, or nothing would have been compared.
    assert after.agreement.mean_cosine < 1 - 1e-7


def test_int8_in_plain_files_says_what_their_own_loader_makes_of_it(tmp_path, make_folder):
    folder, model = make_folder("gpt2")
    artifact = artifact_of(tmp_path, folder, {"scheme": "w8a16"}, output={"format": "safetensors"})
    ids = torch.randint(40, (5, 8), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, tmp_path / "ids")

    _, after, _ = run_both(tmp_path, folder, artifact, walked, tmp_path / "ids")

    spec = importlib.util.spec_from_file_location("load", artifact / "load.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    rounded = transformers.GPT2LMHeadModel(model.config).eval()
    found = rounded.load_state_dict(loader.load_state_dict(artifact), strict=False)
    assert found.missing_keys == ["lm_head.weight"]
    rounded.tie_weights()
    with torch.no_grad():
        loss = float(rounded(input_ids=ids, labels=ids).loss)
    assert after.running.loss == pytest.approx(loss, rel=1e-5)
    assert after.agreement.mean_cosine < 1 - 1e-7


def test_rows_go_together_as_far_as_there_is_room(tmp_path, make_folder, monkeypatch):
    folder, _ = make_folder("llama")
    read, done = [], []
    load = Skeleton.load
    monkeypatch.setattr(
        Skeleton, "load", lambda self, block: (read.append(block.name), load(self, block))
    )
    names = ["model.layers.0", "model.layers.1"]
    # Of two rows of nine tokens: hidden states, cosines and sines, and what else there is.
    of_batch = 4 * 2 * (2 * 9 * 32 + 2 * 9 * 8)

    def groups(room):
        read.clear(), done.clear()
        subject = walked(folder, folder, room)
        run_original(subject, None, Evaluate(**ROWS), tmp_path / "kept", done.append)
        assert read == names * (len(read) // 2)
        assert done == sorted(done)
        assert done[-1] == 7
        return len(read) // 2

    assert (groups(2**30), groups(0)) == (1, 4)
    assert groups(2 * of_batch + of_batch // 2) == 2


def test_weights_kept_in_full_precision_by_the_library_are_so_here(tmp_path, make_folder):
    folder, model = make_folder("t5")
    model.half().save_pretrained(folder)

    compare(tmp_path, folder, folder)

    skeleton = WalkedSubject(*walked(folder, folder).args)._skeleton
    skeleton.load(skeleton.blocks[0])
    opened = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype="auto")
    for name, parameter in skeleton.blocks[0].module.named_parameters():
        full_name = f"{skeleton.blocks[0].name}.{name}"
        assert parameter.dtype == opened.get_parameter(full_name).dtype, full_name


def test_a_layer_that_is_used_twice_is_said_to_be_the_reason(tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=40, embedding_size=16, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(tmp_path)

    with pytest.raises(Problem, match="more than once for a row") as caught:
        run_original(
            walked(tmp_path, tmp_path), None, Evaluate(**ROWS), tmp_path / "k", lambda _: None
        )

    assert caught.value.code == "unknown_architecture"
