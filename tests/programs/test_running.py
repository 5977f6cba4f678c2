import numpy as np
import pytest
import torch

from evaluation.running import run_artifact, run_original
from jobs.problems import Problem
from jobs.recipe import Evaluate
from programs.running import ProgramSubject
from tests.programs.conftest import MODELS


@pytest.fixture
def run_both(tmp_path):
    def run(before, after, dataset=None, **wanted):
        kept, evaluate = tmp_path / "outputs", Evaluate(**wanted)
        openers = [lambda p=p: ProgramSubject(p / "model.pt2") for p in (before, after)]
        first = run_original(openers[0], dataset, evaluate, kept, lambda _: None)
        return first, run_artifact(openers[1], dataset, evaluate, kept, lambda _: None)

    return run


@pytest.mark.parametrize("is_dynamic", [True, False], ids=["rows vary", "two rows"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_program_agrees_wholly_with_itself(make_program, run_both, kind, is_dynamic):
    folder, model = make_program(kind, is_dynamic=is_dynamic)

    before, after = run_both(folder, folder, rows=5, batch_size=3)

    assert before.rows == after.rows == 5
    assert after.agreement.mean_cosine == pytest.approx(1, abs=1e-9)
    assert after.agreement.top1_agreement == 1
    assert set(before.running.latency_seconds) == ({"1"} if is_dynamic else {"2"})
    unique = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    assert before.running.weight_bytes >= sum(unique.values())


@pytest.mark.parametrize("is_dynamic", [True, False], ids=["rows vary", "two rows"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_accuracy_and_loss_are_those_of_the_labels(
    make_program, run_both, tmp_path, kind, is_dynamic
):
    folder, model = make_program("pooled", is_dynamic=is_dynamic)
    sound, labels = torch.randn(31, 2, 20), torch.arange(31) % 3
    path = tmp_path / "data"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, sound=sound.double().numpy(), labels=labels.int().numpy())
    else:
        from safetensors.torch import save_file

        save_file({"sound": sound, "labels": labels}, path)

    before, _ = run_both(folder, folder, path, rows=100, batch_size=7)

    with torch.inference_mode():
        logits = model(sound)
    assert before.rows == 31
    assert before.running.accuracy == pytest.approx(
        float((logits.argmax(1) == labels).float().mean())
    )
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert before.running.loss == pytest.approx(float(expected), abs=1e-5)


WRONG = {
    "another name": ({"image": np.zeros((4, 2, 20))}, "takes ['sound']"),
    "one more": ({"sound": np.zeros((4, 2, 20)), "more": np.zeros(4)}, "takes ['sound']"),
    "another shape": ({"sound": np.zeros((4, 2, 21))}, "takes ['rows', 2, 20]"),
    "labels that are no classes": (
        {"sound": np.zeros((4, 2, 20)), "labels": np.array([0, 1, 2, 3])}, "3 classes",
    ),
    "labels that are floats": (
        {"sound": np.zeros((4, 2, 20)), "labels": np.zeros(4)}, "one whole number",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_data_set_that_does_not_fit_is_told_why(make_program, run_both, tmp_path, fields, told):
    folder, _ = make_program("pooled")
    path = tmp_path / "data"
    with path.open("wb") as file:
        np.savez(file, **fields)

    with pytest.raises(Problem) as caught:
        run_both(folder, folder, path)

    assert caught.value.code == "invalid_dataset"
    assert told in caught.value.detail


def test_text_is_for_transformers(make_program, run_both, tmp_path):
    folder, _ = make_program("pooled")
    (tmp_path / "data").write_text('{"text": "a"}\n')

    with pytest.raises(Problem, match="takes tensors") as caught:
        run_both(folder, folder, tmp_path / "data")

    assert caught.value.code == "invalid_dataset"
