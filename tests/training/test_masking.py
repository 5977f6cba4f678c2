import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.masking import Masking

MASK_TOKEN, SPECIAL, VOCABULARY = 3, (0, 1, 2, 3), 50


def batch(rows, longest):
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(4, VOCABULARY, (rows, longest), generator=generator)
    ids[:, 0] = 1
    return {"input_ids": ids * mask, "attention_mask": mask}


@given(st.integers(1, 12), st.integers(2, 60), st.integers(0, 9))
def test_of_every_row_as_many_tokens_are_hidden_as_its_length_asks_for(rows, longest, epoch):
    fields = batch(rows, longest)
    masking = Masking(MASK_TOKEN, SPECIAL, VOCABULARY)

    found = masking.hide(fields, range(rows), (7, epoch))

    targets, before = found["labels"], fields["input_ids"]
    chosen = targets != -100
    assert torch.equal(targets[chosen], before[chosen])
    assert not torch.isin(targets[chosen], torch.tensor(SPECIAL)).any()
    # What was not chosen is as it was, padding and special tokens among it.
    assert torch.equal(found["input_ids"][~chosen], before[~chosen])
    words = (fields["attention_mask"].sum(1) - 1).tolist()
    assert chosen.sum(1).tolist() == [min(n, max(1, round(0.15 * n))) for n in words]


def test_what_is_hidden_of_a_row_does_not_depend_on_the_rows_beside_it():
    fields = batch(6, 30)
    masking = Masking(MASK_TOKEN, SPECIAL, VOCABULARY)

    whole = masking.hide(fields, range(6), (7, 0))
    some = masking.hide({name: v[[4, 1]] for name, v in fields.items()}, [4, 1], (7, 0))
    other = masking.hide(fields, range(6), (7, 1))

    assert torch.equal(some["input_ids"], whole["input_ids"][[4, 1]])
    assert torch.equal(some["labels"], whole["labels"][[4, 1]])
    assert not torch.equal(other["labels"], whole["labels"])


def test_eight_of_ten_are_hidden_one_is_another_and_one_stays():
    ids = torch.randint(4, VOCABULARY, (400, 100), generator=torch.Generator().manual_seed(0))

    found = Masking(MASK_TOKEN, SPECIAL, VOCABULARY).hide({"input_ids": ids}, range(400), (0,))

    chosen = found["labels"] != -100
    now, before = found["input_ids"][chosen], ids[chosen]
    assert len(now) == 400 * 15
    assert (now == MASK_TOKEN).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (now == before).float().mean().item() == pytest.approx(0.1, abs=0.03)
