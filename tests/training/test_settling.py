"""Which micro-batch and which savings are found, where memory ends at a chosen place."""

import pytest
import torch

from jobs.problems import Problem
from tests.training.conftest import finetune_step
from training.settling import Settler

ROW_BYTES = 100


class Bench:
    """A linear model and a memory of so many bytes, which its rows and states take exactly."""

    name = "A model"
    objective = "classification"
    frozen_statistics = 0
    has_host_beside = False

    def __init__(self, limit_bytes, fixed_bytes=0, *, can_checkpoint=True):
        self.module = torch.nn.Linear(4, 3)
        self.limit_bytes = limit_bytes
        self._fixed = fixed_bytes
        self._can_checkpoint = can_checkpoint
        self._is_checkpointing = False
        self._peak = 0

    def logits(self, inputs):
        row_bytes = ROW_BYTES // 4 if self._is_checkpointing else ROW_BYTES
        wanted = self._fixed + row_bytes * len(inputs["x"])
        if wanted > self.limit_bytes + ROW_BYTES:
            raise MemoryError
        self._peak = max(self._peak, wanted)
        return self.module(inputs["x"])

    def checkpoint_activations(self):
        self._is_checkpointing = self._can_checkpoint
        return self._can_checkpoint

    def adapt(self, _step):
        return None

    def reset(self):
        self._peak = 0

    def held_bytes(self):
        return self._fixed

    def peak_bytes(self):
        return self._peak

    def budget_for(self, peak_bytes):
        return peak_bytes

    def keep_freed_memory(self):
        pass

    def return_freed_memory(self):
        return False


def settle(bench, **choices):
    step = finetune_step(**choices)

    def rows(count):
        return {"x": torch.ones(count, 4), "labels": torch.zeros(count, dtype=torch.int64)}

    parameters = dict(bench.module.named_parameters())
    return Settler(bench, parameters, step, rows, bench).settle()


def test_as_many_rows_as_fit_are_in_memory_and_split_evenly():
    setting = settle(Bench(limit_bytes=1150, fixed_bytes=100), batch_size=32)

    # Ten fit; four times eight need no more passes.
    assert (setting.micro_batch_size, setting.savings) == (8, ())
    assert [d.micro_batch_size for d in setting.decisions] == [1, 2, 4, 8]
    assert [d.peak_bytes for d in setting.decisions] == [200, 300, 500, 900]


def test_room_is_left_for_what_grows_unless_a_size_is_asked_for():
    found = settle(Bench(limit_bytes=460, fixed_bytes=60), batch_size=12)
    asked = settle(Bench(limit_bytes=460, fixed_bytes=60), batch_size=12, micro_batch_size=4)

    assert (found.micro_batch_size, found.savings) == (3, ())
    assert (asked.micro_batch_size, asked.savings) == (4, ())


def test_where_no_row_fits_activations_are_computed_again():
    setting = settle(Bench(limit_bytes=158, fixed_bytes=60), batch_size=8)

    assert setting.savings == ("activation_checkpointing",)
    assert setting.micro_batch_size == 3
    assert [d.outcome for d in setting.decisions] == ["too_large", "fits", "fits"]


def test_a_saving_that_the_model_has_not_is_left_out():
    with pytest.raises(Problem) as caught:
        settle(Bench(limit_bytes=90, can_checkpoint=False), batch_size=8)

    assert caught.value.code == "memory_budget_exceeded"
    assert "with adamw8bit turned on it was 100 bytes" in caught.value.detail
    assert caught.value.extra["smallest_bytes"] == 100
    assert settle(Bench(limit_bytes=100, can_checkpoint=False), batch_size=8).savings == ()


def test_states_go_to_the_host_where_it_has_memory_of_its_own():
    bench = Bench(limit_bytes=90, can_checkpoint=False)
    bench.has_host_beside = True

    with pytest.raises(Problem, match="with adamw8bit, offload_optimizer turned on"):
        settle(bench, batch_size=8)


def test_a_size_that_was_asked_for_is_taken_or_refused():
    asked = {"batch_size": 8, "micro_batch_size": 4, "savings": []}

    assert settle(Bench(limit_bytes=400), **asked).micro_batch_size == 4
    with pytest.raises(Problem, match="does not fit"):
        settle(Bench(limit_bytes=399), **asked)


def test_probing_leaves_weights_gradients_and_states_as_they_were():
    bench = Bench(limit_bytes=10_000)
    before = {name: p.detach().clone() for name, p in bench.module.named_parameters()}

    setting = settle(bench, batch_size=4)

    for name, parameter in bench.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.grad.any()
        state = setting.optimizer.state[parameter]
        assert not any(value.any() for value in state.values())
