"""Plans of recipes whose stages each begin with what the one before them made."""

from dataclasses import replace

import pytest

from jobs.recipe import parse_recipe
from planning.forecast import forecast
from planning.memory_model import DEFAULT_LEVELS
from planning.walks import LEAST_LIBRARY_BYTES, largest_block_bytes, weight_bytes
from tests.planning.test_shrinking import LLAMA, checkpoint_of, shapes_of

SHRINK = {"op": "shrink", "width": 0.5}
WANDA = {"op": "prune", "method": "wanda", "sparsity": 0.5}
GPTQ = {"op": "quantize", "scheme": "w8a16", "method": "gptq"}
SECTION = {"dataset": "ds_" + "0" * 64, "rows": 1, "max_length": 2}
WIDE = {"hidden_size": 512, "intermediate_size": 16_384, "num_attention_heads": 8}


@pytest.fixture
def checkpoint():
    shapes = shapes_of(hidden=512, intermediate=16_384, queries=512, groups=256)
    return checkpoint_of(LLAMA | WIDE, shapes)


def planned(checkpoint, *steps, **sections):
    calibrated = any(step.get("method") in ("wanda", "gptq") for step in steps)
    section = {"calibrate": SECTION} if calibrated or "taylor" in str(steps) else {}
    recipe = parse_recipe({"steps": list(steps), **section, **sections})
    return forecast(checkpoint, recipe, DEFAULT_LEVELS)


def test_each_stage_reads_what_the_one_before_it_wrote(checkpoint):
    shrunk = planned(checkpoint, SHRINK).prediction

    made = planned(checkpoint, SHRINK, WANDA, GPTQ)
    steps = made.prediction.steps

    assert [step.op for step in steps] == ["shrink", "prune", "quantize"]
    assert steps[0].bytes_written == shrunk.steps[0].bytes_written
    assert steps[0].bytes_read == shrunk.steps[0].bytes_read
    left = sum(spec.nbytes for spec in made.plan.checkpoint.tensors.values())
    assert [step.bytes_read for step in steps[1:]] == [0, left]
    assert made.prediction.artifact_bytes == made.plan.artifact_bytes
    assert steps[1].bytes_written == 0


def test_a_calibration_after_a_shrink_needs_room_for_a_block_of_what_is_left(checkpoint):
    first, after = planned(checkpoint, WANDA), planned(checkpoint, SHRINK, WANDA)

    left = after.plan.checkpoint
    assert first.prediction.least_host_bytes == LEAST_LIBRARY_BYTES + largest_block_bytes(
        checkpoint
    )
    assert after.prediction.least_host_bytes == LEAST_LIBRARY_BYTES + largest_block_bytes(left)
    assert 1.5 * largest_block_bytes(left) < largest_block_bytes(checkpoint)


def test_the_stage_that_needs_most_tells_what_a_job_needs(checkpoint):
    whole = planned(checkpoint, {**SHRINK, "importance": "taylor"}, WANDA).prediction
    run = planned(checkpoint, SHRINK, WANDA, evaluate={}, gate={"max_latency_ratio": 2})

    # Gradients go through all of the model that came in, and so does a latency.
    needed = LEAST_LIBRARY_BYTES + weight_bytes(checkpoint)
    assert whole.least_host_bytes == run.prediction.least_host_bytes == needed
    assert (
        run.prediction.host_peak_bytes
        > planned(checkpoint, SHRINK, WANDA).prediction.host_peak_bytes
    )


def test_a_file_that_the_model_brings_is_counted_once(checkpoint):
    brought = replace(checkpoint, others={"tokenizer.json": 5000, "model.pt": 7})

    sizes = [planned(one, SHRINK, WANDA).prediction.artifact_bytes for one in (checkpoint, brought)]

    assert sizes[1] - sizes[0] == 5000
