import json

import pytest
import yaml

from jobs.problems import Problem
from jobs.recipe import Recipe, load_recipe, parse_recipe

QUANTIZE = {"op": "quantize", "scheme": "w8a16"}
PRUNE = {"op": "prune", "sparsity": 0.5}


def refused(members: object) -> dict[str, str]:
    with pytest.raises(Problem) as caught:
        parse_recipe(members)
    assert caught.value.code == "invalid_recipe"
    assert caught.value.status == 422
    return {error.pointer: error.detail for error in caught.value.errors}


def test_yaml_and_json_give_the_same_recipe():
    members = {"steps": [PRUNE, QUANTIZE], "budget": {"host_memory": "2GiB", "runtime": "2h"}}

    from_yaml = load_recipe(yaml.safe_dump(members))
    from_json = load_recipe(json.dumps(members))

    assert from_yaml == from_json
    assert from_yaml.budget.host_memory == 2 * 1024**3
    assert from_yaml.budget.runtime == 7200.0


def test_a_recipe_survives_being_written_and_read_again():
    recipe = load_recipe(
        "steps: [{op: prune, structure: '2:4', include: [a, b]}, {op: quantize, scheme: w8a8}]\n"
        "budget: {disk: 20GiB, runtime: 90s}\ngate: {max_size_ratio: 0.6}"
    )

    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("1.5m", 90.0), ("250ms", 0.25), ("1d", 86400.0)]
)
def test_a_runtime_is_written_as_people_write_it(text, seconds):
    recipe = parse_recipe({"steps": [QUANTIZE], "budget": {"runtime": text}})

    assert recipe.budget.runtime == seconds


@pytest.mark.parametrize(
    ("aim", "is_aimed"),
    [({}, False), ({"target_bytes": "1.5GB"}, True), ({"max_relative_rmse": 0.01}, True)],
)
def test_a_step_aims_at_a_size_or_an_error(aim, is_aimed):
    recipe = parse_recipe({"steps": [PRUNE, QUANTIZE | aim]})

    assert recipe.steps[1].target_bytes == (1_500_000_000 if "target_bytes" in aim else None)
    assert recipe.aimed_step == (recipe.steps[1] if is_aimed else None)
    assert parse_recipe({"steps": [PRUNE]}).aimed_step is None


def test_a_bare_structure_is_no_number_in_base_60():
    recipe = load_recipe("steps: [{op: prune, structure: 2:4}]")

    assert recipe.steps[0].structure == "2:4"


@pytest.mark.parametrize("text", ["0.5", ".5", "5e-1", "5.0e-1", "50.e-2"])
def test_a_number_is_read_however_it_is_written(text):
    recipe = load_recipe(f"steps: [{{op: prune, sparsity: {text}}}]")

    assert recipe.steps[0].sparsity == 0.5


WANDA = PRUNE | {"method": "wanda"}
GPTQ = QUANTIZE | {"method": "gptq"}
FINETUNE = {"op": "finetune", "dataset": f"ds_{'0' * 64}", "steps": 1}
AWARE = FINETUNE | {"quantize_aware": True}
DATA = {"dataset": "ds_" + "0" * 64}


@pytest.mark.parametrize(
    ("members", "pointer", "message"),
    [
        ({}, "/steps", "Field required"),
        ({"steps": []}, "/steps", "at least 1 item"),
        ({"steps": [QUANTIZE], "stpes": []}, "/stpes", "not a key that the recipe knows"),
        ({"steps": [{}]}, "/steps/0", "op is missing"),
        ({"steps": [{"op": "distil"}]}, "/steps/0", "'distil' is not offered"),
        ({"steps": [{"op": "finetune", "steps": 1}]}, "/steps/0/dataset", "Field required"),
        ({"steps": [FINETUNE | {"steps": None}]}, "/steps/0", "say how long it is trained"),
        ({"steps": [FINETUNE | {"epochs": 1}]}, "/steps/0", "steps, for example 200, or epochs"),
        ({"steps": [FINETUNE | {"micro_batch_size": 33}]}, "/steps/0", "from 1 to batch_size, 32"),
        ({"steps": [FINETUNE | {"patience": 1}]}, "/steps/0", "give evaluate_every"),
        ({"steps": [FINETUNE | {"lora": {}}]}, "/steps/0", "lora is for method: lora"),
        (
            {"steps": [FINETUNE | {"savings": ["lora"], "lora": {"merge": False}}]},
            "/steps/0",
            "only kept apart with method: lora",
        ),
        (
            {
                "steps": [FINETUNE | {"method": "lora", "lora": {"merge": False}}],
                "evaluate": {},
            },
            "",
            "leave as they were",
        ),
        ({"steps": [FINETUNE | {"distill": 1, "temperature": 1e-9}]}, "/steps/0/temperature", ""),
        ({"steps": [FINETUNE | {"savings": ["lora"] * 2}]}, "/steps/0", "one of them twice"),
        ({"steps": [FINETUNE, FINETUNE]}, "", "at most one finetune step"),
        (
            {"steps": [FINETUNE | {"method": "lora", "lora": {"merge": False}}, QUANTIZE]},
            "",
            "finetune is its last step then",
        ),
        ({"steps": [AWARE]}, "/steps/0/quantize_aware", "quantize step that follows at once"),
        ({"steps": [AWARE, PRUNE, QUANTIZE]}, "/steps/0/quantize_aware", "prune before"),
        (
            {"steps": [PRUNE, AWARE, QUANTIZE | {"target_bytes": "1MB"}]},
            "/steps/2/target_bytes",
            "leave this out, or quantize_aware",
        ),
        (
            {"steps": [AWARE, QUANTIZE | {"max_relative_rmse": 0.01}]},
            "/steps/1/max_relative_rmse",
            "leave this out",
        ),
        (
            {"steps": [AWARE, QUANTIZE | {"method": "gptq"}], "calibrate": DATA},
            "/steps/1/method",
            "nearest steps",
        ),
        (
            {"steps": [AWARE, QUANTIZE | {"scheme": "w8a8", "smooth": 0.5}], "calibrate": DATA},
            "/steps/1/smooth",
            "nearest steps",
        ),
        ({"steps": [AWARE | {"method": "lora"}, QUANTIZE]}, "/steps/0", "adapters are added"),
        ({"steps": [AWARE | {"savings": ["lora"]}, QUANTIZE]}, "/steps/0", "leave one of the two"),
        ({"steps": [AWARE | {"bf16": True}, QUANTIZE]}, "/steps/0", "bfloat16 would round once"),
        ({"steps": [{"op": "quantize"}]}, "/steps/0/scheme", "Field required"),
        ({"steps": [QUANTIZE | {"scheme": "w4a16"}]}, "/steps/0/scheme", "'w8a16' or 'w8a8'"),
        ({"steps": [QUANTIZE | {"bits": 4}]}, "/steps/0/bits", "not a key"),
        ({"steps": [{"op": "prune"}]}, "/steps/0", "sparsity is needed"),
        ({"steps": [QUANTIZE | {"target_bytes": "2XB"}]}, "/steps/0/target_bytes", "byte"),
        ({"steps": [QUANTIZE | {"target_bytes": 0}]}, "/steps/0/target_bytes", "greater than 0"),
        ({"steps": [QUANTIZE | {"max_relative_rmse": 0}]}, "/steps/0/max_relative_rmse", "greater"),
        (
            {"steps": [QUANTIZE | {"max_relative_rmse": "inf"}]},
            "/steps/0/max_relative_rmse",
            "finite",
        ),
        (
            {"steps": [QUANTIZE], "gate": {"max_size_ratio": "inf"}},
            "/gate/max_size_ratio",
            "finite",
        ),
        ({"steps": [PRUNE | {"target_bytes": 1}]}, "/steps/0/target_bytes", "not a key"),
        ({"steps": [PRUNE | {"sparsity": 1}]}, "/steps/0/sparsity", "less than 1"),
        ({"steps": [PRUNE | {"sparsity": -0.1}]}, "/steps/0/sparsity", "greater than or equal"),
        ({"steps": [PRUNE | {"structure": "2:4", "sparsity": 0.3}]}, "/steps/0", "sparsity 0.5"),
        ({"steps": [{"op": "prune", "structure": "2:4", "scope": "row"}]}, "/steps/0", "scope out"),
        ({"steps": [{"op": "prune", "structure": "2:4", "biases": True}]}, "/steps/0", "biases"),
        ({"steps": [PRUNE | {"include": []}]}, "/steps/0/include", "at least 1 item"),
        ({"steps": [QUANTIZE, PRUNE]}, "", "quantize is the last step"),
        ({"steps": [QUANTIZE, QUANTIZE]}, "", "at most one quantize"),
        ({"steps": [PRUNE] * 17}, "/steps", "at most 16"),
        ({"steps": [QUANTIZE], "budget": {"runtime": "2x"}}, "/budget/runtime", "such as 90s"),
        ({"steps": [QUANTIZE], "budget": {"host_memory": "2XB"}}, "/budget/host_memory", "byte"),
        ({"steps": [QUANTIZE], "budget": {"disk": 0}}, "/budget/disk", "greater than 0"),
        ({"steps": [QUANTIZE], "gate": {"max_size_ratio": 0}}, "/gate/max_size_ratio", "greater"),
        ({"steps": [QUANTIZE], "output": {"format": "gguf"}}, "/output/format", "'auto'"),
        ({"steps": [WANDA]}, "", "step 1 needs data: a calibrate section"),
        ({"steps": [PRUNE], "calibrate": DATA}, "", "no step needs the calibrate section"),
        ({"steps": [WANDA], "calibrate": {}}, "/calibrate/dataset", "Field required"),
        ({"steps": [WANDA | {"scope": "global"}]}, "/steps/0", "not of all"),
        ({"steps": [WANDA | {"biases": True}]}, "/steps/0", "leave biases out"),
        ({"steps": [QUANTIZE | {"smooth": 0.5}]}, "/steps/0", "smooth is for scheme w8a8"),
        ({"steps": [GPTQ | {"target_bytes": "1MB"}]}, "/steps/0", "leave the aims or these out"),
        ([], "", "valid dictionary"),
    ],
)
def test_a_fault_is_named_with_its_pointer(members, pointer, message):
    faults = refused(members)

    assert message in faults[pointer]


def test_pointers_start_where_the_recipe_stands_in_the_request():
    with pytest.raises(Problem) as caught:
        parse_recipe({"steps": [{"op": "x"}]}, pointer="/spec")

    assert caught.value.errors[0].pointer == "/spec/steps/0"


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "{", "steps: [", "\x00", b"\xff\xfe", "!!python/object:os.system {}"]
)
def test_a_document_that_cannot_be_read_is_refused(text):
    with pytest.raises(Problem, match="invalid_recipe"):
        load_recipe(text)


def test_a_recipe_names_the_data_sets_that_it_reads_each_once():
    other = {"dataset": "ds_" + "1" * 64}

    steps = {"steps": [WANDA, GPTQ], "calibrate": DATA}
    assert parse_recipe(steps).datasets == (DATA["dataset"],)
    assert parse_recipe(steps | {"evaluate": DATA}).datasets == (DATA["dataset"],)
    assert parse_recipe(steps | {"evaluate": other}).datasets == (
        DATA["dataset"],
        other["dataset"],
    )
    assert parse_recipe({"steps": [PRUNE], "evaluate": {}}).datasets == ()


def test_wanda_counts_by_row_unless_it_counts_by_group():
    recipe = parse_recipe({"steps": [WANDA, GPTQ], "calibrate": DATA})
    grouped = parse_recipe(
        {"steps": [{"op": "prune", "method": "wanda", "structure": "2:4"}], "calibrate": DATA}
    )

    assert recipe.steps[0].scope == "row"
    assert grouped.steps[0].scope == "tensor"


BY_DATA = {"op": "shrink", "width": 0.5, "importance": "activation"}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"op": "prune", "sparsity": 0.5}, {"op": "shrink", "width": 0.5}], "the first step"),
        ([{"op": "shrink", "width": 0.5}, {"op": "shrink", "layers": 0.5}], "at most one shrink"),
        ([{"op": "shrink"}], "width is needed"),
        ([{"op": "shrink", "width": 0.0}], "greater than 0"),
        ([{"op": "shrink", "width": 0.5, "round_to": 512}], "256"),
        ([BY_DATA], "step 1 needs data: a calibrate section"),
        ([{"op": "shrink", "layers": 0.5, "importance": "taylor"}], "width is needed with it"),
    ],
)
def test_a_shrink_step_that_does_not_fit_is_refused(steps, said):
    with pytest.raises(Problem, match=said):
        parse_recipe({"steps": steps})


def test_data_may_decide_what_shrink_keeps_before_steps_that_need_none():
    steps = [BY_DATA, PRUNE, QUANTIZE]

    recipe = parse_recipe({"steps": steps, "calibrate": DATA})

    assert recipe.shrink_step.importance == "activation"


SHRINK = {"op": "shrink", "width": 0.5}
INFER = {"op": "infer", "dataset": "ds_" + "1" * 64}
FINETUNE = {"op": "finetune", "dataset": DATA["dataset"], "steps": 1}


@pytest.mark.parametrize(
    ("steps", "sizes"),
    [
        ([WANDA, GPTQ], [2]),
        ([WANDA, PRUNE, QUANTIZE], [3]),
        ([SHRINK, WANDA, GPTQ], [1, 2]),
        ([BY_DATA, WANDA, GPTQ], [1, 2]),
        ([BY_DATA, PRUNE, GPTQ], [2, 1]),
        ([PRUNE, GPTQ], [1, 1]),
        ([WANDA, PRUNE, GPTQ], [2, 1]),
        ([WANDA, WANDA], [1, 1]),
        ([SHRINK, WANDA, FINETUNE, GPTQ, INFER], [1, 1, 1, 1]),
    ],
)
def test_what_looks_at_the_model_as_it_is_by_then_begins_a_stage(steps, sizes):
    recipe = parse_recipe({"steps": steps, "calibrate": DATA})

    assert [len(stage.steps) for stage in recipe.stages] == sizes
    # None but those that need data are taken through any.
    assert [stage.calibrate is not None for stage in recipe.stages] == [
        any(step.is_calibrated for step in stage.steps) for stage in recipe.stages
    ]


def test_an_infer_step_is_no_part_of_what_changes_the_model():
    alone = parse_recipe({"steps": [INFER]})
    last = parse_recipe({"steps": [PRUNE, QUANTIZE, INFER]})

    assert alone.compression is None
    assert alone.stages == ()
    assert last.compression == parse_recipe({"steps": [PRUNE, QUANTIZE]})
    assert last.rounding is None
    assert last.compression.rounding is not None
    assert last.stages == (last.compression,)
    assert alone.datasets == last.datasets == (INFER["dataset"],)
    assert alone.runs_model


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"steps": [INFER, QUANTIZE]}, "it is the last step"),
        ({"steps": [INFER, INFER]}, "at most one infer step"),
        ({"steps": [INFER], "evaluate": {}}, "infer changes none"),
        ({"steps": [INFER], "gate": {"max_size_ratio": 1}}, "infer changes none"),
    ],
)
def test_an_infer_step_that_makes_no_sense_is_refused(members, said):
    assert said in refused(members)[""]
