import os
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.inputs import Batch
from jobs.problems import Problem
from training.rows import Row, RowStore, rows_of


@pytest.fixture
def store(tmp_path):
    opened = []
    numbers = count()

    def make(rows):
        folder = tmp_path / f"rows-{next(numbers)}"
        folder.mkdir()
        opened.append(RowStore(folder, rows))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def padded(lengths, longest):
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.arange(1, len(lengths) * longest + 1).reshape(len(lengths), longest) * mask
    return Batch({"input_ids": ids, "attention_mask": mask.long()}, torch.arange(3), mask)


def test_rows_come_back_in_any_order_padded_to_the_longest_of_those_asked_for(store):
    batch = padded([2, 5, 3], 6)

    found = store(rows_of(batch)).collate([2, 0])

    assert torch.equal(found["input_ids"], batch.inputs["input_ids"][[2, 0], :3])
    assert torch.equal(found["attention_mask"], batch.inputs["attention_mask"][[2, 0], :3])
    assert found["labels"].tolist() == [2, 0]


def test_padding_that_comes_first_is_kept(store):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    ids = torch.tensor([[0, 0, 7, 8], [1, 2, 3, 0]])
    batch = Batch({"input_ids": ids, "attention_mask": mask.long()}, None, mask)

    found = store(rows_of(batch))

    assert found.tokens.tolist() == [4, 3]
    assert torch.equal(found.collate([0, 1])["attention_mask"], mask.long())


def test_images_are_rows_of_one_shape(store):
    pixels = torch.randn(5, 3, 4, 4)

    found = store(rows_of(Batch({"pixel_values": pixels}, torch.arange(5)))).collate([4, 1])

    assert torch.equal(found["pixel_values"], pixels[[4, 1]])
    assert found["labels"].tolist() == [4, 1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_every_choice_of_rows_is_what_plain_padding_gives(tmp_path_factory, lengths, data):
    rows = [torch.arange(1, n + 1) * (i + 1) for i, n in enumerate(lengths)]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    found = RowStore(
        tmp_path_factory.mktemp("rows"),
        (Row({"input_ids": row}, len(row)) for row in rows),
    )

    expected = torch.nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True)

    assert torch.equal(found.collate(chosen)["input_ids"], expected)
    found.close()


def test_a_row_with_other_fields_or_shapes_is_refused_by_its_number(store):
    first = Row({"x": torch.zeros(3)})
    cases = [
        (Row({"y": torch.zeros(3)}), "Row 2 has the fields"),
        (Row({"x": torch.zeros(4)}), "x of row 2 is torch.float32 of"),
        (Row({"x": torch.zeros(3).long()}), "x of row 2 is torch.int64 of"),
    ]
    opened = len(os.listdir("/proc/self/fd"))
    for row, message in cases:
        with pytest.raises(Problem, match=message) as caught:
            store([first, row])
        assert caught.value.code == "invalid_dataset"

    with pytest.raises(Problem, match="no rows"):
        store([])
    # No file of them is left open.
    assert len(os.listdir("/proc/self/fd")) == opened


def test_fields_of_a_row_as_a_whole_are_no_longer_than_others_of_its_tokens(tmp_path):
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    values = torch.randn(3, 2)

    batch = Batch({"input_ids": torch.arange(9).reshape(3, 3) * mask}, values, mask.bool())
    store = RowStore(tmp_path, rows_of(batch))

    assert store.tokens.tolist() == [3, 1, 2]
    fields = store.collate([1, 2])
    assert torch.equal(fields["labels"], values[1:])
    assert fields["input_ids"].tolist() == [[3, 0], [6, 7]]
    store.close()
