"""The loop beside plain PyTorch that has the whole effective batch in memory at once."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import save_file

from jobs.problems import Problem

MICRO_BATCHES = [1, 2, 3, 8, 32]


def causal_loss(model, tensors):
    logits = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    targets = tensors["input_ids"].masked_fill(tensors["attention_mask"] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def label_loss(model, tensors):
    inputs = {name: values for name, values in tensors.items() if name != "labels"}
    return F.cross_entropy(model(**inputs).logits, tensors["labels"])


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def differences(found, expected):
    """Give the difference of the whole gradient and the largest of a tensor, over their norms."""
    assert found.keys() == expected.keys()
    errors = {name: float((found[name] - expected[name]).norm()) for name in expected}
    norms = {name: float(expected[name].norm()) for name in expected}
    whole = np.linalg.norm([*errors.values()]) / np.linalg.norm([*norms.values()])
    return whole, max(errors[name] / norms[name] for name in errors if norms[name] > 1e-6)


def accumulated(loop, micro_batch_size):
    loop.setting = replace(loop.setting, micro_batch_size=micro_batch_size)
    loop._zero()
    loop._gradients(np.arange(len(loop.rows.store)))
    return {name: parameter.grad for name, parameter in loop.parameters.items()}


def test_the_gradient_is_that_of_the_effective_batch_though_rows_are_of_unequal_length(
    make_folder, token_rows, make_loop
):
    folder, model = make_folder("llama")
    dataset, tensors = token_rows()
    causal_loss(model, tensors).backward()
    loop = make_loop(folder, dataset, 32)

    for micro_batch_size in MICRO_BATCHES:
        found = accumulated(loop, micro_batch_size)

        # The embedding is the head: its gradient comes from both of its places.
        assert "lm_head.weight" not in found
        assert max(differences(found, gradients(model))) < 1e-6


def test_what_a_row_is_padded_with_changes_nothing_where_a_model_looks_for_its_end(
    make_folder, token_rows, tmp_path, make_loop
):
    folder, model = make_folder("llama-classes")
    _, tensors = token_rows(labels=3)
    padding = model.config.pad_token_id
    ids = tensors["input_ids"].clamp(max=padding - 1)
    tensors["input_ids"] = ids.masked_fill(tensors["attention_mask"] == 0, padding)
    save_file(tensors, tmp_path / "padded")
    label_loss(model, tensors).backward()
    loop = make_loop(folder, tmp_path / "padded", 32)

    for micro_batch_size in MICRO_BATCHES:
        whole, _ = differences(accumulated(loop, micro_batch_size), gradients(model))
        assert whole < 1e-6


def test_the_gradient_of_a_cnn_is_that_of_the_batch_with_its_statistics_frozen(
    make_folder, tmp_path, make_loop
):
    def give_statistics(model):
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1)
                part.running_var.uniform_(0.5, 1.5)

    folder, model = make_folder("resnet", prepare=give_statistics)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "pixel_values": torch.randn(32, 3, 16, 16, generator=generator),
        "labels": torch.randint(4, (32,), generator=generator),
    }
    save_file(tensors, tmp_path / "images")
    label_loss(model, tensors).backward()
    loop = make_loop(folder, tmp_path / "images", 32)
    statistics = {name: b.clone() for name, b in loop.trainable.module.named_buffers()}

    for micro_batch_size in MICRO_BATCHES:
        found = accumulated(loop, micro_batch_size)

        # A bias of a normalization is what is left of a sum of much larger numbers.
        whole, largest = differences(found, gradients(model))
        assert whole < 1e-6
        assert largest < 3e-6
    assert loop.trainable.frozen_statistics > 0
    for name, buffer in loop.trainable.module.named_buffers():
        assert torch.equal(buffer, statistics[name])


@pytest.mark.parametrize("micro_batch_size", [3, 32])
def test_fifty_losses_are_those_of_plain_pytorch(
    make_folder, token_rows, make_loop, micro_batch_size
):
    folder, model = make_folder("llama")
    dataset, tensors = token_rows(rows=80)
    choices = {"learning_rate": 3e-3, "weight_decay": 0.01, "schedule": "constant"}
    loop = make_loop(
        folder, dataset, micro_batch_size, steps=50, batch_size=32, max_grad_norm=0.5, **choices
    )
    plain = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    expected = []
    for step in range(50):
        rows = torch.from_numpy(loop.rows.order.rows_of(step))
        loss = causal_loss(model, {name: values[rows] for name, values in tensors.items()})
        plain.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        plain.step()
        expected.append(loss.item())

    found = [loop.advance(lambda: 0) for _ in range(50)]

    # 80 rows are two steps of 32 and one of 16.
    assert loop.record.rows_seen == 16 * 80 + 64
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_epoch_sees_every_row_once_and_the_next_one_in_another_order(
    make_folder, token_rows, make_loop
):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows(rows=50)
    order = make_loop(folder, dataset, 4, batch_size=16).rows.order

    first = [order.rows_of(step).tolist() for step in range(4)]
    second = [order.rows_of(step).tolist() for step in range(4, 8)]

    assert [len(rows) for rows in first] == [16, 16, 16, 2]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(50))
    assert first != second
    assert order.rows_of(1).tolist() == first[1]


def test_dropout_depends_on_the_step_and_not_on_what_was_done_before(
    make_folder, token_rows, make_loop
):
    def give_dropout(model):
        model.config.attention_dropout = 0.5

    folder, _ = make_folder("llama", prepare=give_dropout)
    dataset, _ = token_rows()
    losses = []
    for noise in range(2):
        loop = make_loop(folder, dataset, 8)
        torch.rand(noise)
        losses.append(loop.advance(lambda: 0))
        loop.trainable.module.eval()

    assert losses[0] == losses[1]


def test_a_loss_that_is_no_number_ends_the_training_and_says_in_which_step(
    make_folder, token_rows, make_loop
):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows()
    loop = make_loop(folder, dataset, 8, steps=3)
    loop.advance(lambda: 0)
    with torch.no_grad():
        next(iter(loop.parameters.values())).fill_(float("inf"))

    with pytest.raises(Problem, match="loss of step 2 is nan") as caught:
        loop.advance(lambda: 0)

    assert caught.value.code == "training_diverged"


def test_where_memory_runs_out_later_fewer_rows_are_together_and_the_record_says_so(
    make_folder, token_rows, make_loop
):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows(rows=8)
    loops = [make_loop(folder, dataset, size, batch_size=8) for size in (2, 8)]
    few = loops[1].trainable.logits

    def logits(inputs):
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return few(inputs)

    loops[1].trainable.logits = logits

    expected, found = (loop.advance(lambda: 0) for loop in loops)

    assert found == pytest.approx(expected, rel=1e-6)
    assert loops[1].setting.micro_batch_size == 2
    tried = [(d.micro_batch_size, d.outcome) for d in loops[1].setting.decisions]
    assert tried == [(8, "out_of_memory"), (4, "out_of_memory")]
    assert [decision["micro_batch_size"] for decision in loops[1].record.decisions] == [8, 4]


def test_a_look_takes_fewer_rows_where_those_held_out_are_too_long(
    make_folder, token_rows, make_loop
):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows(rows=8)
    loop = make_loop(folder, dataset, 8)
    loop.rows = replace(loop.rows, held_out=4)
    expected, plain = loop.look(), loop.trainable.logits

    def logits(inputs):
        if len(inputs["input_ids"]) > 1:
            raise MemoryError
        return plain(inputs)

    loop.trainable.logits = logits

    assert loop.look() == pytest.approx(expected, rel=1e-6)
    assert loop.setting.micro_batch_size == 1
