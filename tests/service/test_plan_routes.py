import json
import math
import time

import pytest

from jobs.levels import publish_levels

W8A16 = {"op": "quantize", "scheme": "w8a16"}
HALF = {"op": "prune", "sparsity": 0.5}
ITEMSIZE = {"BF16": 2, "F32": 4}


def header_of(shapes, dtype="BF16"):
    members, end = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * ITEMSIZE[dtype]
        members[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return members


def llama(layers, hidden, intermediate, vocabulary, key_value):
    """The config and the names and shapes of a Llama."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.v_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return config, shapes


def plan(client, *steps, status=200, **members):
    spec = {"steps": list(steps), **members.pop("recipe", {})}
    answer = client.post("/plans", json={"spec": spec, **members})
    assert answer.status_code == status, answer.text
    return answer.json


@pytest.fixture
def small():
    return {"headers": {"model.safetensors": header_of({"fc.weight": (64, 32), "fc.bias": (64,)})}}


def test_an_uploaded_model_is_planned_to_the_byte(client, model_id):
    made = plan(client, W8A16, model=model_id)

    assert made["fits"] is True
    assert made["is_exact"] is True
    assert made["bytes_read"] == 4 * 8 * 4 + 4 * 4
    assert made["artifact"]["bytes"] == made["bytes_written"] == made["steps"][0]["bytes_written"]
    assert made["artifact"]["format"] == "safetensors"
    assert made["steps"][0]["tensors_changed"] == 1


def test_bare_headers_are_planned_like_the_file_they_begin(client, model_id, checkpoint):
    length = int.from_bytes(checkpoint[:8], "little")
    headers = {"model.safetensors": json.loads(checkpoint[8 : 8 + length])}

    bare = plan(client, HALF, W8A16, headers=headers)
    stored = plan(client, HALF, W8A16, model=model_id)

    for made in (bare, stored):
        del made["artifact"]["size_ratio"]
    assert bare == stored


@pytest.mark.parametrize(
    ("step", "reads"),
    [
        (HALF, 2),
        (HALF | {"method": "random"}, 1),
        (HALF | {"scope": "row"}, 1),
        (HALF | {"scope": "global"}, 2),
        ({"op": "prune", "structure": "2:4"}, 1),
    ],
)
def test_measuring_passes_are_counted(client, step, reads):
    weight = {"model.safetensors": header_of({"fc.weight": (64, 32)})}

    made = plan(client, step, W8A16, headers=weight)

    assert made["bytes_read"] == reads * 64 * 32 * 2


def test_a_model_of_70_billion_parameters_is_planned_within_a_second(client):
    config, shapes = llama(80, 8192, 28672, 128256, 1024)
    names = list(shapes)
    headers = {
        f"model-{i:05}-of-00030.safetensors": header_of({n: shapes[n] for n in names[i - 1 :: 30]})
        for i in range(1, 31)
    }

    started = time.perf_counter()
    made = plan(client, W8A16, headers=headers, config=config)
    seconds = time.perf_counter() - started

    assert len(names) == 723
    assert made["is_exact"] is True
    assert made["artifact"]["format"] == "compressed-tensors"
    assert made["bytes_read"] == sum(2 * math.prod(shape) for shape in shapes.values())
    assert 0.5 < made["artifact"]["size_ratio"] < 0.52
    assert made["memory"]["predicted_peak_bytes"] < 200 * 1024**2
    assert seconds < 1


@pytest.mark.slow
def test_a_mixture_of_a_hundred_thousand_tensors_is_planned(client):
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": (64, 64)
        for layer in range(65)
        for expert in range(512)
        for name in ("gate_proj", "up_proj", "down_proj")
    }

    made = plan(
        client, HALF | {"scope": "global"}, W8A16, headers={"m.safetensors": header_of(shapes)}
    )

    assert made["steps"][1]["tensors_changed"] == len(shapes) == 99840


def test_what_workers_measured_is_planned_with(client, small, store):
    guessed = plan(client, W8A16, **small)["memory"]
    publish_levels(store.redis, {"idle_bytes": 10**9, "inspection_bytes": 2 * 10**9, "threads": 7})

    measured = plan(client, W8A16, **small)["memory"]

    assert (guessed["is_measured"], measured["is_measured"]) == (False, True)
    assert (measured["idle_bytes"], measured["threads"]) == (10**9, 7)
    assert 10**9 < measured["predicted_peak_bytes"] < 1.1 * 10**9


def test_a_config_that_the_table_does_not_know_is_planned_by_names(client):
    config, shapes = llama(1, 32, 64, 100, 16)
    headers = {"model.safetensors": header_of(shapes)}

    known = plan(client, W8A16, headers=headers, config=config)
    unknown = plan(client, W8A16, headers=headers, config=config | {"architectures": ["OwnModel"]})

    assert (known["is_exact"], unknown["is_exact"]) == (True, False)
    assert unknown["artifact"]["bytes"] == known["artifact"]["bytes"]
    assert known["memory"]["inspection_bytes"] is None
    assert unknown["memory"]["predicted_peak_bytes"] >= unknown["memory"]["inspection_bytes"]


def test_a_budget_that_is_too_small_does_not_fit_and_the_smallest_one_does(client, small, store):
    publish_levels(store.redis, {"has_device": 1})
    tight = {"budget": {"host_memory": 1000, "device_memory": 1000, "disk": 1000}}
    made = plan(client, W8A16, recipe=tight, **small)
    least = made["smallest_budget"]

    enough = plan(client, W8A16, recipe={"budget": least}, **small)
    short = {"budget": {name: value - 1 for name, value in least.items()}}
    barely_not = plan(client, W8A16, recipe=short, **small)

    assert (made["fits"], made["overruns"]) == (False, ["host_memory", "device_memory", "disk"])
    assert (enough["fits"], enough["overruns"]) == (True, [])
    assert (barely_not["fits"], barely_not["smallest_budget"]) == (False, least)


def test_a_target_is_planned_with_the_trial_and_as_the_size_of_the_artifact(client, small):
    free = plan(client, HALF, W8A16, **small)
    target = free["artifact"]["total_bytes"] + 100

    made = plan(client, HALF, W8A16 | {"target_bytes": target}, **small)

    weight = 64 * 32 * 2
    assert made["artifact"]["total_bytes"] == target
    assert made["artifact"]["bytes"] == made["bytes_written"] == free["artifact"]["bytes"] + 100
    assert made["bytes_read"] == 2 * free["bytes_read"] - 64 * 2
    assert made["steps"][1]["bytes_read"] == 2 * weight + 64 * 2
    assert made["smallest_budget"]["disk"] == target
    assert made["memory"]["predicted_peak_bytes"] >= free["memory"]["predicted_peak_bytes"]


def test_a_target_that_int8_does_not_reach_is_refused_with_its_place(client, small):
    made = plan(client, W8A16 | {"target_bytes": 10}, status=422, **small)

    assert made["code"] == "target_unreachable"
    assert made["errors"][0]["pointer"] == "/spec/steps/0/target_bytes"
    plan(client, W8A16 | {"target_bytes": made["smallest_bytes"]}, **small)


def test_files_that_are_copied_count_and_others_do_not(client, small):
    without = plan(client, W8A16, **small)["artifact"]
    files = {"tokenizer.json": 500, "model.py": 70, "notes/LICENSE": 30}

    made = plan(client, W8A16, **small, files=files)["artifact"]

    assert made["total_bytes"] == without["total_bytes"] + 530
    assert made["bytes"] == without["bytes"]


@pytest.mark.parametrize(
    ("members", "code", "pointer"),
    [
        ({}, "malformed_request", ""),
        ({"model": "mdl_x", "headers": {}}, "malformed_request", "/headers"),
        ({"model": "mdl_x", "config": {}}, "malformed_request", ""),
        ({"model": "mdl_x"}, "model_not_found", None),
        ({"headers": {"a.bin": {}}}, "invalid_checkpoint", "/headers/a.bin"),
        ({"headers": {"../a.safetensors": {}}}, "invalid_checkpoint", "/headers/..~1a.safetensors"),
        ({"headers": {"a.safetensors": {}}}, "invalid_checkpoint", None),
        ({"headers": {"a.safetensors": []}}, "malformed_request", "/headers/a.safetensors"),
        (
            {"headers": {"a.safetensors": {"w/x": {"dtype": "BF16"}}}},
            "invalid_tensor",
            "/headers/a.safetensors/w~1x",
        ),
        (
            {
                "headers": {
                    "a.safetensors": {
                        "w": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 4]},
                    }
                }
            },
            "tensor_gap",
            "/headers/a.safetensors",
        ),
        ({"headers": {"a.safetensors": header_of({"a.weight": (4,)})}}, "nothing_changed", None),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_place(client, members, code, pointer):
    answer = client.post("/plans", json={"spec": {"steps": [W8A16]}, **members})

    assert answer.json["code"] == code
    assert answer.status_code == answer.json["status"]
    assert [error["pointer"] for error in answer.json["errors"]] == (
        [] if pointer is None else [pointer]
    )


def test_a_recipe_that_is_none_is_refused_with_its_place(client, small):
    answer = client.post("/plans", json={"spec": {"steps": [{"op": "melt"}]}, **small})

    assert (answer.status_code, answer.json["code"]) == (422, "invalid_recipe")
    assert answer.json["errors"][0]["pointer"] == "/spec/steps/0"


def test_a_plan_takes_json_within_a_limit(client):
    as_form = client.post("/plans", data={"spec": "{}"})
    too_large = client.post("/plans", data=bytes(2**25 + 1), content_type="application/json")

    assert as_form.json["code"] == "unsupported_media_type"
    assert too_large.json["code"] == "too_large"


def test_a_shrunk_model_is_planned_from_headers_alone(client):
    config, shapes = llama(2, 64, 96, 50, 32)
    config |= {"num_attention_heads": 8}
    asked = {"headers": {"model.safetensors": header_of(shapes)}, "config": config}

    found = plan(client, {"op": "shrink", "width": 0.5}, W8A16, **asked)

    shrink, quantize = found["steps"]
    assert (shrink["op"], shrink["method"], shrink["tensors_changed"]) == (
        "shrink",
        "magnitude",
        14,
    )
    # Values, outputs and the MLP of two layers, in bfloat16.
    assert shrink["bytes_read"] == 2 * 2 * 64 * (32 + 64 + 3 * 96)
    assert quantize["tensors_changed"] == 14
    whole = plan(client, W8A16, **asked)
    assert found["artifact"]["size_ratio"] < whole["artifact"]["size_ratio"]


def test_what_cannot_be_shrunk_is_said_before_anything_is_run(client):
    config, shapes = llama(2, 64, 96, 50, 32)
    headers = {"model.safetensors": header_of(shapes)}
    half = {"op": "shrink", "width": 0.5}

    strange = plan(client, half, status=422, headers=headers, config=config | {"model_type": []})
    bare = plan(client, half, status=422, headers=headers)

    assert strange["code"] == bare["code"] == "shrink_unsupported"
    assert "Offered are bart, bert" in strange["detail"]
    assert bare["errors"][0]["pointer"] == "/spec/steps/0"


ENCODER = {
    "headers": {"model.safetensors": header_of({"embeddings.word.weight": (100, 32)})},
    "config": {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32},
}


def test_an_infer_step_is_planned_by_the_rows_of_its_data_set(client):
    dataset = client.post("/datasets", data=b'{"text": "a"}\n' * 30).json["id"]
    step = {"op": "infer", "dataset": dataset}

    made = plan(client, step, **ENCODER)
    first = plan(client, step | {"rows": 10}, **ENCODER)
    unknown = plan(client, step | {"dataset": "ds_" + "7" * 64}, **ENCODER)

    assert made["steps"][0]["method"] == "embeddings"
    assert (made["steps"][0]["rows"], made["artifact"]["bytes"]) == (30, 30 * 32 * 4)
    assert (first["steps"][0]["rows"], first["bytes_written"]) == (10, 10 * 32 * 4)
    assert (unknown["steps"][0]["rows"], unknown["bytes_written"]) == (None, 0)
    assert made["smallest_budget"]["host_memory"] > 300_000_000


def test_a_budget_in_which_no_model_can_be_run_does_not_fit_an_infer_step(client):
    step = {"op": "infer", "dataset": "ds_" + "7" * 64}

    made = plan(client, step, recipe={"budget": {"host_memory": "200MB"}}, **ENCODER)

    assert (made["fits"], made["overruns"]) == (False, ["host_memory"])


def test_compression_and_inference_are_planned_together(client):
    step = {"op": "infer", "dataset": "ds_" + "7" * 64, "rows": 10}
    named = ENCODER | {
        "headers": {"model.safetensors": header_of({"pooler.dense.weight": (64, 32)})}
    }

    alone = plan(client, HALF, **named)
    both = plan(client, HALF, step, recipe={}, **named)

    assert [one["op"] for one in both["steps"]] == ["prune", "infer"]
    assert both["artifact"]["bytes"] == alone["artifact"]["bytes"]
    least = [one["smallest_budget"]["host_memory"] for one in (alone, both)]
    assert max(least[0], 300_000_000) <= least[1]


def test_a_model_without_a_config_is_not_run(client, small):
    step = {"op": "infer", "dataset": "ds_" + "7" * 64}

    refused = plan(client, step, status=422, **small)

    assert refused["code"] == "evaluation_unsupported"
    assert refused["errors"][0]["pointer"] == "/spec/steps/0"
