import pytest

from modelpress.recipe_file import read_recipe

RECIPE = {"steps": [{"op": "prune", "sparsity": 0.5, "structure": "2:4"}]}


@pytest.mark.parametrize(
    "text",
    [
        'steps:\n  - {op: prune, sparsity: 0.5, structure: "2:4"}\n',
        b'{"steps": [{"op": "prune", "sparsity": 0.5, "structure": "2:4"}]}',
    ],
    ids=["yaml", "json"],
)
def test_yaml_and_json_give_the_same_recipe(text):
    assert read_recipe(text) == RECIPE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no mapping"),
        ("- a list", "no mapping"),
        ("steps: [", "neither YAML nor JSON"),
        (b"\xff\xfe\xff", "neither YAML nor JSON"),
        ("day: 2030-01-01", "no form for"),
        ("!!python/object/apply:os.system ['true']", "neither YAML nor JSON"),
    ],
)
def test_what_cannot_be_sent_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_recipe(text)
