import numpy as np
import pytest
import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def smallest_first(values: np.ndarray, count: int) -> np.ndarray:
    """The reference: sort all magnitudes, equals in their order, and zero the first."""
    pruned = values.copy().reshape(-1)
    pruned[np.argsort(np.abs(pruned), kind="stable")[:count]] = 0
    return pruned.reshape(values.shape)


def count_of(sparsity: float, elements: int) -> int:
    return round(sparsity * elements)


def prune(**members):
    return {"op": "prune", **members}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.5, 0.99])
@pytest.mark.parametrize("chunk_bytes", [100, 2**21])
def test_magnitude_prunes_the_smallest_of_each_tensor(
    save_model, press, weights, dtype, sparsity, chunk_bytes
):
    weight = weights(40, 30, dtype=DTYPES[dtype])
    model = save_model({"0.weight": weight})

    pressed = press(model, prune(sparsity=sparsity), chunk_bytes=chunk_bytes)

    count = count_of(sparsity, 1200)
    expected = smallest_first(weight.float().numpy(), count)
    assert pressed.tensors["0.weight"].dtype == DTYPES[dtype]
    np.testing.assert_array_equal(pressed.tensors["0.weight"].float().numpy(), expected)
    assert pressed.report.steps[0].weights_pruned == count
    assert pressed.report.tensors[0].after.sparsity == np.mean(expected == 0)


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("sparsity", [0.5, 0.99])
def test_the_number_of_zeros_is_exact_when_all_weights_are_equal(
    save_model, press, scope, method, sparsity
):
    tensors = {f"{i}.weight": torch.full((8, 100), -0.25, dtype=torch.bfloat16) for i in range(2)}
    model = save_model(tensors)

    pressed = press(model, prune(sparsity=sparsity, scope=scope, method=method))

    zeros = {name: int((tensor == 0).sum()) for name, tensor in pressed.tensors.items()}
    assert sum(zeros.values()) == count_of(sparsity, 1600)
    if scope != "global":
        assert zeros == dict.fromkeys(tensors, count_of(sparsity, 800))
    if scope == "row":
        per_row = torch.stack(list(pressed.tensors.values())).eq(0).sum(-1)
        assert torch.equal(per_row, torch.full((2, 8), count_of(sparsity, 100)))


def test_row_scope_prunes_the_smallest_of_each_output_channel(save_model, press, weights):
    weight = weights(9, 50)

    pressed = press(save_model({"0.weight": weight}), prune(sparsity=0.3, scope="row"))

    expected = np.stack([smallest_first(row, 15) for row in weight.numpy()])
    np.testing.assert_array_equal(pressed.tensors["0.weight"].numpy(), expected)


@pytest.mark.parametrize("chunk_bytes", [64, 2**21])
def test_global_scope_compares_tensors_of_all_dtypes_by_value(
    save_model, press, weights, chunk_bytes
):
    tensors = {
        f"{i}.weight": weights(10, 12, dtype=dtype, seed=i) * (i + 1)
        for i, dtype in enumerate(DTYPES.values())
    }

    pressed = press(
        save_model(tensors), prune(sparsity=0.6, scope="global"), chunk_bytes=chunk_bytes
    )

    # The order of the file: wider dtypes come first in what save_file writes.
    names = ["2.weight", "0.weight", "1.weight"]
    joined = np.concatenate([tensors[name].float().numpy().ravel() for name in names])
    result = np.concatenate([pressed.tensors[name].float().numpy().ravel() for name in names])
    np.testing.assert_array_equal(result, smallest_first(joined, 216))


def test_a_pruned_negative_weight_becomes_positive_zero(save_model, press):
    weight = torch.tensor([[-1.0, -0.0, -2.0, -3.0]])

    pressed = press(save_model({"0.weight": weight}), prune(sparsity=0.5))

    expected = torch.tensor([[0.0, 0.0, -2.0, -3.0]])
    assert torch.equal(pressed.tensors["0.weight"].view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("structure", ["2:4", "4:8"])
def test_a_convolution_is_pruned_in_groups_of_its_input_channels(
    save_model, press, weights, structure
):
    group = int(structure[-1])
    weight = weights(6, 16, 3, 3)

    pressed = press(save_model({"conv.weight": weight}), prune(structure=structure))

    grouped = weight.reshape(6, 16 // group, group, 9)
    rank = grouped.abs().argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    expected = torch.where(rank < group // 2, grouped, 0.0).reshape(weight.shape)
    assert torch.equal(pressed.tensors["conv.weight"], expected)


def test_random_pruning_depends_on_seed_and_name_alone(save_model, press, weights):
    model = save_model({"a.weight": weights(30, 20), "b.weight": weights(30, 20)})

    first = press(model, prune(method="random", sparsity=0.5, seed=1)).tensors
    again = press(model, prune(method="random", sparsity=0.5, seed=1), chunk_bytes=128).tensors
    other = press(model, prune(method="random", sparsity=0.5, seed=2)).tensors

    assert torch.equal(first["a.weight"], again["a.weight"])
    assert not torch.equal(first["a.weight"], other["a.weight"])
    assert not torch.equal(first["a.weight"] == 0, first["b.weight"] == 0)


@pytest.mark.parametrize("chunk_bytes", [200, 2**21])
def test_each_step_sees_what_the_steps_before_it_left(save_model, press, weights, chunk_bytes):
    tensors = {f"{i}.weight": weights(16, 24, seed=i) for i in range(3)}
    steps = (
        prune(sparsity=0.2, scope="global"),
        prune(structure="2:4", include=["0", "1"]),
        prune(sparsity=0.7, include=["1", "2"]),
        prune(sparsity=0.75, scope="global", exclude=["0"]),
    )

    pressed = press(save_model(tensors), *steps, chunk_bytes=chunk_bytes)

    values = smallest_first(np.stack([t.numpy() for t in tensors.values()]), round(0.2 * 1152))
    for i in (0, 1):
        grouped = values[i].reshape(16, 6, 4)
        rank = np.argsort(np.argsort(-np.abs(grouped), axis=2, kind="stable"), axis=2)
        values[i] = np.where(rank < 2, grouped, 0).reshape(16, 24)
    for i in (1, 2):
        values[i] = smallest_first(values[i], round(0.7 * 384))
    values[1:] = smallest_first(values[1:], round(0.75 * 768))
    result = np.stack([pressed.tensors[name].numpy() for name in tensors])
    np.testing.assert_array_equal(result, values)


def test_biases_are_pruned_on_request_as_tensors_of_their_own(save_model, press, weights):
    model = save_model(
        {"0.weight": weights(20, 5), "0.bias": weights(20), "norm.bias": weights(20)}
    )

    with_biases = press(model, prune(sparsity=0.5, biases=True))
    without = press(model, prune(sparsity=0.5))

    assert int((with_biases.tensors["0.bias"] == 0).sum()) == 10
    assert torch.equal(without.tensors["0.bias"], weights(20))
    assert torch.equal(with_biases.tensors["norm.bias"], weights(20))
