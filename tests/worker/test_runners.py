import pytest

from jobs.recipe import parse_recipe
from worker.order import Order
from worker.orders import making_orders
from worker.runners import most_kept_bytes

MODEL_BYTES = 2**34
DATASET = "ds_" + "0" * 64
PRUNE = {"op": "prune", "sparsity": 0.5}
WANDA = PRUNE | {"method": "wanda"}
FINETUNE = {"op": "finetune", "dataset": DATASET, "steps": 1}


@pytest.mark.parametrize(
    ("steps", "copies"),
    [
        ([PRUNE], 1),
        # A stage writes what data decided about, and its artifact.
        ([PRUNE, WANDA], 1 + 2),
        ([WANDA] * 16, 16 * 2),
        # Two checkpoints of a 16-bit model have weights and two moments in float32.
        ([PRUNE, FINETUNE], 1 + 1 + 2 * 6),
    ],
)
def test_what_all_stages_keep_until_the_end_is_allowed(tmp_path, steps, copies):
    model, data = tmp_path / "model", tmp_path / "data"
    model.mkdir()
    data.write_bytes(b"")
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(MODEL_BYTES)
    section = {"calibrate": {"dataset": DATASET}} if WANDA in steps else {}
    recipe = parse_recipe({"steps": steps, **section})
    order = Order(str(model), str(tmp_path / "work"), recipe.model_dump(mode="json"), "cpu")

    orders = making_orders(order, recipe, {DATASET: data})

    assert most_kept_bytes([order, *orders]) > copies * MODEL_BYTES
