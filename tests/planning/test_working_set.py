import pytest

from jobs.recipe import parse_recipe
from jobs.safetensors_header import TensorSpec
from planning.extents import extent_of
from planning.matrices import Matrix
from planning.selection import Target
from planning.working_set import working_set

W8A8 = {"op": "quantize", "scheme": "w8a8"}


def target_of(shape, *, dtype="BF16", scheme="w8a8", prune_steps=(), groups=(), kind="Linear"):
    matrix = Matrix.of(TensorSpec("a.weight", dtype, shape, 0), kind)
    return Target(
        matrix, "a", "a", prune_steps, scheme, is_embedding=False, group_size=None, groups=groups,
        whole_channels=scheme is not None,
    )  # fmt: skip


def recipe_of(*steps):
    return parse_recipe({"steps": list(steps)})


@pytest.mark.parametrize("shape", [(10, 10), (4, 2**28), (2**28, 4), (1, 2**34), (2**20, 2**20)])
def test_buffers_do_not_grow_with_a_tensor_beyond_the_chunk(shape):
    found = working_set([target_of(shape)], recipe_of(W8A8), threads=2, chunk_bytes=2**19)

    assert found.nbytes <= 2 * (2**19 + 2**18 + 2**17 + 2**14)


def test_every_thread_has_its_own_buffers_and_histograms_are_shared():
    target = target_of((512, 512), prune_steps=(0,))
    recipe = recipe_of({"op": "prune", "sparsity": 0.5}, W8A8)

    one = working_set([target], recipe, threads=1, chunk_bytes=2**16)
    four = working_set([target], recipe, threads=4, chunk_bytes=2**16)

    assert one.per_thread == four.per_thread
    assert one.per_thread["read"] == one.per_thread["pruned"] == 2**16
    assert "keys" not in one.per_thread
    assert "pruned again" not in one.per_thread
    assert one.per_thread["rounded"] == 2**15
    assert one.per_thread["scales"] == 2 * 64
    assert one.shared == {"histograms": 2 * 2**15 * 8}
    assert four.shared == {"histograms": 5 * 2**15 * 8}
    assert four.nbytes == 4 * sum(four.per_thread.values()) + 5 * 2**18


def test_steps_that_follow_one_another_take_turns_in_two_buffers_and_draws_need_one_of_their_own():
    half = {"op": "prune", "sparsity": 0.5}
    recipe = recipe_of(half, half, {**half, "method": "random"}, W8A8)

    twice = working_set(
        [target_of((512, 512), prune_steps=(0, 1))], recipe, threads=1, chunk_bytes=2**16
    )
    by_chance = working_set(
        [target_of((512, 512), prune_steps=(0, 1, 2))], recipe, threads=1, chunk_bytes=2**16
    )

    assert twice.per_thread["pruned"] == twice.per_thread["pruned again"] == 2**16
    assert by_chance.per_thread.items() - twice.per_thread.items() >= {("keys", 2**17)}


@pytest.mark.parametrize("positions", [1, 9])
def test_a_group_of_inputs_is_never_split(positions):
    shape = (8, 64, positions)
    target = target_of(shape, scheme=None, prune_steps=(0,), groups=(4, 8))

    extent = extent_of(target, 1)

    assert (extent.shape, extent.elements) == ("flat", 8 * positions)


def test_a_row_longer_than_a_chunk_is_cut_and_a_transposed_tensor_keeps_the_order_of_its_file():
    assert extent_of(target_of((4, 5000)), 2048).shape == "pieces"
    panel = extent_of(target_of((300, 5000), kind="Conv1D"), 2048)
    assert (panel.shape, panel.rows, panel.width) == ("panel", 1, 1024)
