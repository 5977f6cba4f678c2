from pathlib import Path

import pytest

from jobs.recipe import load_recipe, parse_recipe
from modelpress.recipe_file import read_recipe

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_every_promised_recipe_is_there():
    assert [path.stem for path in RECIPES] == [
        "int8-dynamic",
        "int8-weights",
        "prune-2-4-int8",
        "prune-half",
        "shrink-int8",
        "tutorial",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_service_and_the_client_read_the_same_valid_recipe(path):
    read_by_service = load_recipe(path.read_bytes())

    assert parse_recipe(read_recipe(path.read_bytes())) == read_by_service


def test_the_tutorial_prunes_biases_too_and_then_quantizes():
    prune, quantize = load_recipe((FOLDER / "tutorial.yaml").read_bytes()).steps

    assert (prune.method, prune.sparsity, prune.biases) == ("random", 0.5, True)
    assert quantize.scheme == "w8a8"
