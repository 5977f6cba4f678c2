"""What artifacts hold, found again by the names and shapes that the model has."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.pipeline import compress
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from planning.stored_weights import as_floats, stored_weights


@pytest.fixture
def press(tmp_path, save_model, weights):
    def press(**step):
        model = save_model(
            {
                "fc.weight": weights(6, 10),
                "conv.weight": weights(4, 3, 3, 3),
                "embed.weight": weights(8, 6),
                "norm.weight": weights(6),
            }
        )
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        recipe = parse_recipe({"steps": [{"op": "quantize", **step}]})
        compress(model, artifact, recipe, on_progress=lambda _: None)
        return model, artifact

    return press


@pytest.mark.parametrize("step", [{"scheme": "w8a16"}, {"scheme": "w8a8", "embeddings": True}])
def test_an_artifact_has_the_tensors_of_its_model(press, step):
    model, artifact = (open_checkpoint(folder) for folder in press(**step))

    found = as_floats(artifact).tensors

    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in model.tensors.items()
    }
    stored = stored_weights(artifact)
    assert {name for name, weight in stored.items() if weight.scale} == {
        "fc.weight", "conv.weight", *(["embed.weight"] if "embeddings" in step else []),
    }  # fmt: skip
    assert {weight.is_packed for weight in stored.values() if weight.scale} == {
        step["scheme"] == "w8a16"
    }


def test_a_model_is_what_it_is(press):
    model = open_checkpoint(press(scheme="w8a16")[0])

    assert as_floats(model) == model


@pytest.mark.parametrize("shape", [[6, 11, 2], [7, 10], [6, 13], [-6, -10], []])
def test_a_shape_that_is_not_that_of_the_values_is_refused(press, shape):
    _, artifact = press(scheme="w8a16")
    tensors = load_file(artifact / "model.safetensors")
    tensors["fc.weight_shape"] = torch.tensor(shape, dtype=torch.int64)
    save_file(tensors, artifact / "model.safetensors")

    with pytest.raises(Problem, match=r"fc\.weight"):
        stored_weights(open_checkpoint(artifact))
