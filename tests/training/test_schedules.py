import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from tests.training.conftest import finetune_step
from training.schedules import learning_rate_at


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_without_warm_up_the_rates_are_those_of_transformers(schedule, reference):
    step = finetune_step(schedule=schedule, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = reference(optimizer, 0, 20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    found = [learning_rate_at(step, done, 20) for done in range(20)]

    assert found == pytest.approx(expected)


def test_it_rises_evenly_and_no_step_is_wasted_on_a_rate_of_zero():
    step = finetune_step(schedule="constant", learning_rate=0.4, warmup_steps=4)

    found = [learning_rate_at(step, done, 6) for done in range(6)]

    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
