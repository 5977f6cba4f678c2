import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.samples import WINDOW, TensorFiles, choose_places
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem

sizes = st.integers(1, 10**6)


@given(name=st.text(), rows=sizes, columns=sizes, tensors=st.integers(1, 10**5))
def test_places_are_few_lie_in_the_tensor_and_hold_both_of_its_ends(name, rows, columns, tensors):
    places = choose_places(name, rows, columns, tensors)

    assert places == sorted(set(places)) == choose_places(name, rows, columns, tensors)
    assert len(places) <= (16 if tensors <= 1000 else max(3, 16_384 // tensors))
    assert (places[0].row, places[0].start) == (0, 0)
    assert (places[-1].row, places[-1].stop) == (rows - 1, columns)
    for place in places:
        assert 0 <= place.row < rows
        assert place.start % WINDOW == 0
        assert place.stop == min(place.start + WINDOW, columns) > place.start


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_tensor_has_no_places(shape):
    assert choose_places("a", *shape, 1) == []


def test_tensors_of_different_names_are_looked_at_in_different_places():
    drawn = [{place.row for place in choose_places(name, 10**6, 8, 10)} for name in "ab"]

    assert drawn[0] & drawn[1] == {0, 10**6 - 1}
    assert [len(rows) for rows in drawn] == [16, 16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_values_are_read_exactly(save_model, weights, dtype):
    tensors = {"a": weights(3, 5, dtype=dtype), "b": weights(4, 6, dtype=dtype, seed=1)}
    checkpoint = open_checkpoint(save_model(tensors, shards=2))

    with TensorFiles(checkpoint) as files:
        read = files.read_floats(checkpoint.tensors["b"], 7, 9)

    assert read.tolist() == tensors["b"].double().reshape(-1)[7:16].tolist()


def test_a_file_that_ends_early_is_told(save_model, weights):
    folder = save_model({"a": weights(3, 5)})
    checkpoint = open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with (
        TensorFiles(checkpoint) as files,
        pytest.raises(Problem, match=r"model.safetensors ended inside tensor 'a'"),
    ):
        files.read_floats(checkpoint.tensors["a"], 10, 5)
