"""A small language model, trained here, pruned and rounded with data through the whole stack."""

import pytest

from benchmarks.small_language_model import texts, train, write_rows
from modelpress import Client

# Training takes most of two minutes where nothing else runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def client(stack):
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def materials(client, tmp_path_factory):
    """Give the trained model, data to calibrate with and data to evaluate on, all uploaded."""
    folder = tmp_path_factory.mktemp("language-model")
    losses = train(folder / "model", steps=1000)
    assert losses[-1] < 0.5 * losses[0]
    seen, held_out = texts()
    write_rows(folder / "calibration.jsonl", seen, 64)
    write_rows(folder / "held-out.jsonl", held_out, 96, seed=1)
    write_rows(folder / "training.jsonl", seen, 640, seed=2)
    datasets = (
        client.upload_dataset(folder / f"{name}.jsonl").id
        for name in ("calibration", "held-out", "training")
    )
    return client.upload_model(folder / "model").id, *datasets


@pytest.fixture(scope="module")
def run(client, materials):
    """Have the model compressed, and give the report."""
    model, calibration, held_out, training = materials

    def run(*steps):
        trained = {"dataset": training, "max_length": 96, "batch_size": 16}
        steps = [trained | step if step["op"] == "finetune" else step for step in steps]
        recipe = {"steps": steps, "evaluate": {"dataset": held_out, "batch_size": 16}}
        if any(s.get("method") in ("wanda", "gptq") or "smooth" in s for s in steps):
            recipe["calibrate"] = {"dataset": calibration, "max_length": 96}
        job = client.wait(client.submit(model, recipe).id, timeout=300)
        assert job.state == "succeeded", job.failure
        return client.report(job.id)

    return run


def divergence(report):
    return report["quality"]["agreement"]["kl_divergence"]


def perplexity_ratio(report):
    quality = report["quality"]
    return quality["after"]["perplexity"] / quality["before"]["perplexity"]


def test_half_the_weights_go_and_wanda_moves_answers_less_than_magnitudes_do(run):
    prune = {"op": "prune", "sparsity": 0.5}

    wanda = run({**prune, "method": "wanda", "scope": "tensor"})
    magnitude = run({**prune, "scope": "tensor"})

    assert perplexity_ratio(wanda) > 1
    # On so small a model the perplexities are close, and which is lower depends on the rows.
    assert perplexity_ratio(wanda) < 1.02 * perplexity_ratio(magnitude)
    assert divergence(wanda) < divergence(magnitude)
    for report in (wanda, magnitude):
        pruned = [t for t in report["tensors"] if ".layers." in t["name"]]
        assert len(pruned) == 21
        assert all(t["after"]["sparsity"] == pytest.approx(0.5, abs=0.01) for t in pruned)
    assert wanda["calibration"]["rows"] == 64
    assert wanda["calibration"]["blocks"] == 3
    peak = wanda["calibration"]["resident_peak_bytes"]
    assert wanda["memory"]["measured_peak_bytes"] >= peak > 0


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_int8_keeps_the_perplexity_and_gptq_is_no_worse_than_the_nearest_steps(run, scheme):
    step = {"op": "quantize", "scheme": scheme}

    plain, chosen = run(step), run({**step, "method": "gptq"})

    assert abs(perplexity_ratio(plain) - 1) < 0.005
    assert abs(perplexity_ratio(chosen) - 1) < 0.005
    assert max(chosen["calibration"]["error_ratios"].values()) <= 1
    assert divergence(chosen) <= divergence(plain)


def test_smoothing_wanda_and_gptq_work_together_on_rows_of_text(run):
    report = run(
        {"op": "prune", "method": "wanda", "structure": "2:4"},
        {"op": "quantize", "scheme": "w8a8", "method": "gptq", "smooth": 0.5},
    )

    assert len(report["calibration"]["smoothed_norms"]) == 6
    assert report["verification"]["max_error_steps"] <= 0.502


def test_training_on_what_the_model_answered_brings_back_half_of_what_pruning_took(run):
    prune = {"op": "prune", "sparsity": 0.5}
    finetune = {"op": "finetune", "epochs": 2, "learning_rate": 1e-3, "distill": 1.0}

    pruned, trained = run(prune), run(prune, finetune, {"op": "quantize", "scheme": "w8a8"})

    lost = perplexity_ratio(pruned) - 1
    assert lost > 0.02
    assert perplexity_ratio(trained) - 1 < lost / 2
    assert divergence(trained) < divergence(pruned) / 2
    assert trained["training"]["steps"] == 80
    weights = [t for t in trained["tensors"] if ".layers." in t["name"] and len(t["shape"]) > 1]
    assert len(weights) == 21
    assert all(t["after"]["sparsity"] >= 0.5 > t["before"]["sparsity"] for t in weights)
    assert trained["training"]["weights_held_zero"] == pruned["steps"][0]["weights_pruned"]
