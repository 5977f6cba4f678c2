"""Whole trainings of small folders, beside what went in."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jobs.problems import Problem
from training.course import Watcher


def half_pruned(model):
    for name, parameter in model.named_parameters():
        if "proj" in name:
            smallest = parameter.abs().flatten().kthvalue(parameter.numel() // 2).values
            parameter.masked_fill_(parameter.abs() <= smallest, 0)


def test_only_what_is_selected_is_trained_and_all_else_has_the_bits_it_had(
    make_folder, token_rows, train
):
    folder, _ = make_folder("llama", torch.bfloat16)
    before = load_file(folder / "model.safetensors")

    training, output = train(folder, token_rows()[0], include=["*.mlp.*"])

    after = load_file(output / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if ".mlp." in name}
    assert all(after[name].dtype == torch.bfloat16 for name in after)
    assert training.trained_parameters == 2 * 3 * 32 * 48


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "sgd", "adafactor"])
def test_pruned_weights_are_zero_and_no_others_after_a_training(
    make_folder, token_rows, train, optimizer
):
    folder, model = make_folder("llama", prepare=half_pruned)
    choices = {"optimizer": optimizer, "weight_decay": 0.1, "steps": 10}

    training, output = train(folder, token_rows()[0], **choices)

    after = load_file(output / "model.safetensors")
    pruned = [name for name in after if "proj" in name]
    for name in pruned:
        assert torch.equal(after[name] == 0, model.get_parameter(name) == 0)
    assert training.weights_held_zero == sum(int((after[name] == 0).sum()) for name in pruned)
    assert len(pruned) == 14


def test_adapters_are_added_to_frozen_weights_and_leave_zeros_zero(make_folder, token_rows, train):
    folder, model = make_folder("llama", prepare=half_pruned)

    training, output = train(folder, token_rows()[0], method="lora", lora={"rank": 4})

    after = load_file(output / "model.safetensors")
    for name, value in after.items():
        before = model.get_parameter(name)
        assert torch.equal(value, before) == ("proj" not in name)
        if "proj" in name:
            assert not (value[before == 0]).any()
    assert training.trained_parameters == sum(
        4 * sum(after[name].shape) for name in after if "proj" in name
    )
    assert training.weights_held_zero > 0


def test_adapters_that_are_not_merged_lie_beside_the_model_as_it_was(
    make_folder, token_rows, train
):
    folder, model = make_folder("llama")

    train(folder, token_rows()[0], method="lora", lora={"merge": False})
    _, output = train(folder, token_rows()[0], "again", method="lora", lora={"merge": False})

    after = load_file(output / "model.safetensors")
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in after.items())
    adapters = load_file(output / "adapter" / "adapter_model.safetensors")
    assert len(adapters) == 28
    assert all(value.any() for value in adapters.values())


def test_the_best_weights_are_given_and_training_ends_when_it_helps_no_more(
    make_folder, token_rows, train, tmp_path
):
    folder, _ = make_folder("llama")
    _, tensors = token_rows(rows=24)
    # Which tokens there are can be learned from some rows for others, and nothing beyond.
    tensors["input_ids"] %= 8
    save_file(tensors, tmp_path / "few")
    choices = {
        "steps": 60, "evaluate_every": 2, "evaluation_rows": 8, "patience": 3, "keep_best": True,
    }  # fmt: skip

    training, output = train(folder, tmp_path / "few", **choices)

    losses = {look.step: look.loss for look in training.looks}
    assert (training.stopped_early, training.stopped_by) == (True, "patience")
    assert training.planned_steps == 60
    assert training.steps < 60
    assert 0 < training.best_step == min(losses, key=losses.get) < training.steps
    assert (training.rows, training.held_out_rows) == (16, 8)
    model = transformers.LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    ids, mask = (tensors[name][-8:] for name in ("input_ids", "attention_mask"))
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(losses[training.best_step], abs=1e-4)


def test_a_training_that_is_asked_to_end_gives_what_as_many_steps_alone_would(
    make_folder, token_rows, train
):
    folder, _ = make_folder("llama")
    rows, told = token_rows()[0], []
    watcher = Watcher(told.append, lambda: told[-1].done >= 3)

    stopped, output = train(folder, rows, watcher=watcher, steps=5000, schedule="constant")
    whole, expected = train(folder, rows, "short", steps=3, schedule="constant")

    assert (stopped.steps, stopped.planned_steps, stopped.stopped_by) == (3, 5000, "request")
    assert stopped.stopped_early
    assert (whole.steps, whole.planned_steps, whole.stopped_by) == (3, 3, None)
    found, wanted = (load_file(path / "model.safetensors") for path in (output, expected))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_training_that_is_asked_to_end_before_it_began_does_one_step(
    make_folder, token_rows, train
):
    folder, _ = make_folder("llama")
    watcher = Watcher(lambda _told: None, lambda: True)

    training, _ = train(folder, token_rows()[0], watcher=watcher)

    assert (training.steps, training.stopped_by) == (1, "request")


def test_what_is_kept_of_a_training_that_is_asked_to_end_is_the_best_look(
    make_folder, token_rows, train
):
    folder, _ = make_folder("llama")
    rows, told = token_rows(rows=24)[0], []
    watcher = Watcher(told.append, lambda: told[-1].done >= 41)
    choices = {
        "steps": 5000, "evaluate_every": 2, "evaluation_rows": 8, "keep_best": True,
        "learning_rate": 2e-3,
    }  # fmt: skip

    training, output = train(folder, rows, watcher=watcher, schedule="constant", **choices)

    losses = {look.step: look.loss for look in training.looks}
    # The last look is where it ended, as it is where a training does all of its steps.
    assert list(losses) == [*range(0, 41, 2), 41]
    assert training.best_step == min(losses, key=losses.get) < training.steps == 41
    best = training.best_step
    _, expected = train(folder, rows, "best", **choices | {"steps": best, "keep_best": False},
                        schedule="constant")  # fmt: skip
    found, wanted = (load_file(path / "model.safetensors") for path in (output, expected))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("saving", [None, "activation_checkpointing"])
def test_layers_are_computed_in_bfloat16_and_weights_and_losses_are_float32(
    make_folder, token_rows, train, monkeypatch, saving
):
    """Forced, as also what a processor only emulates is computed so."""
    from training import folders, settling

    folder, model = make_folder("llama")
    dataset, _ = token_rows()
    expected, _ = train(folder, dataset, "float32")
    monkeypatch.setattr(folders, "has_bf16", lambda _device: True)
    if saving:
        # It is there from the beginning.
        found = settling.Settler._find_size
        monkeypatch.setattr(
            settling.Settler, "_find_size",
            lambda self, savings: found(self, savings) if saving in savings else None,
        )  # fmt: skip
    seen = []
    original = folders.TrainedFolder.logits
    monkeypatch.setattr(
        folders.TrainedFolder, "logits",
        lambda self, inputs: seen.append(original(self, inputs)) or seen[-1],
    )  # fmt: skip

    training, output = train(folder, dataset, bf16=True, savings=[saving] if saving else [])

    assert {logits.dtype for logits in seen} == {torch.bfloat16}
    assert training.savings == ((saving,) if saving else ())
    losses, wanted = ([p.loss for p in one.losses] for one in (training, expected))
    assert losses == pytest.approx(wanted, rel=2e-2)
    assert losses != wanted
    dtypes = {
        name: tensor.dtype for name, tensor in load_file(output / "model.safetensors").items()
    }
    assert set(dtypes.values()) == {model.dtype}


def test_where_a_device_has_no_bfloat16_float32_is_computed_in_and_the_report_says_so(
    make_folder, token_rows, train, monkeypatch
):
    from training import folders, running

    folder, _ = make_folder("llama")
    dataset, _ = token_rows()
    expected, _ = train(folder, dataset, "float32")
    for room in (folders, running):
        monkeypatch.setattr(room, "has_bf16", lambda _device: False)

    training, _ = train(folder, dataset, bf16=True)

    assert (expected.bf16, training.bf16) == (None, False)
    assert [p.loss for p in training.losses] == [p.loss for p in expected.losses]


def test_one_row_a_step_may_be_stepped_inside_the_backward_pass_to_the_same_weights(
    make_folder, token_rows, train, monkeypatch
):
    folder, _ = make_folder("llama")
    choices = {"batch_size": 1, "steps": 5, "max_grad_norm": None}
    _, plain = train(folder, token_rows()[0], "plain", **choices)
    # No budget that a test could set is so tight: the saving is there from the beginning.
    from training import settling

    original = settling.Settler._find_size
    monkeypatch.setattr(
        settling.Settler,
        "_find_size",
        lambda self, savings: (
            original(self, savings) if "optimizer_in_backward" in savings else None
        ),
    )

    training, output = train(folder, token_rows()[0], savings=["optimizer_in_backward"], **choices)

    assert training.savings == ("optimizer_in_backward",)
    expected, found = (load_file(f / "model.safetensors") for f in (plain, output))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_data_set_that_is_all_held_out_is_refused(make_folder, token_rows, train):
    folder, _ = make_folder("llama")

    with pytest.raises(Problem, match="none is left to train on") as caught:
        train(folder, token_rows(rows=8)[0], evaluate_every=1, evaluation_rows=8)

    assert caught.value.code == "invalid_dataset"


def test_a_classifier_of_rows_of_unequal_length_learns_another_ones_shares(
    make_folder, token_rows, train
):
    """Its loss is the divergence in plain PyTorch, whose teacher here is the model itself."""
    folder, model = make_folder("bert")
    dataset, tensors = token_rows(rows=8, labels=3)

    training, _ = train(folder, dataset, distill=0.25, steps=1, batch_size=8)

    labels = tensors.pop("labels")
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(**tensors).logits, labels)
    # A model's divergence from itself is none.
    assert training.losses[0].loss == pytest.approx(0.75 * float(loss), rel=1e-4)


def test_values_are_learnt_where_a_model_gives_one(make_folder, tmp_path, train, token_rows):
    folder, _ = make_folder("bert-value")
    _, tensors = token_rows(rows=64)
    values = tensors["input_ids"].float().mean(1) / 30
    save_file({**tensors, "labels": values}, tmp_path / "values")

    training, _ = train(folder, tmp_path / "values", steps=30, learning_rate=3e-3)

    assert training.objective == "regression"
    assert training.losses[-1].loss < 0.5 * training.losses[0].loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_device_gives_the_losses_of_the_processor_and_says_what_it_reserved(
    make_folder, token_rows, train
):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows()

    expected, _ = train(folder, dataset, "host")
    found, _ = train(folder, dataset, "device", "cuda")

    assert [point.loss for point in found.losses] == pytest.approx(
        [point.loss for point in expected.losses], rel=1e-3
    )
    assert found.device_peak_bytes > 0
    assert all(decision.peak_bytes > 0 for decision in found.decisions)
