"""What another model answers, beside its answers in plain PyTorch."""

import pytest
import torch

from jobs.problems import Problem
from tests.training.conftest import finetune_step
from training.divergence import CHOICES, SHARES
from training.opening import open_trainable
from training.teaching import taught_rows


def test_the_likeliest_answers_are_kept_and_the_same_where_rows_fit_one_by_one(
    make_folder, token_rows
):
    folder, model = make_folder("llama")
    dataset, tensors = token_rows(rows=6)
    step = finetune_step(distill=0.5, temperature=2.0)
    teacher = open_trainable(folder, dataset, step, "cpu")
    plain = teacher.logits
    together = list(taught_rows(teacher, dataset, step))

    def logits(inputs):
        if len(inputs["input_ids"]) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(inputs)

    teacher.logits, most = logits, 1
    alone = list(taught_rows(teacher, dataset, step))

    with torch.inference_mode():
        shares = (model(**tensors).logits / 2).log_softmax(-1)
    for number, (row, other) in enumerate(zip(together, alone, strict=True)):
        choices = row.fields[CHOICES].long()
        assert choices.shape == (row.tokens, 32)
        expected = shares[number, : row.tokens]
        torch.testing.assert_close(row.fields[SHARES], expected.gather(-1, choices))
        torch.testing.assert_close(row.fields[SHARES], expected.topk(32).values)
        torch.testing.assert_close(row.fields[SHARES], other.fields[SHARES])
    most = 0
    with pytest.raises(Problem, match="one row at a time") as caught:
        list(taught_rows(teacher, dataset, step))
    assert caught.value.code == "memory_budget_exceeded"
