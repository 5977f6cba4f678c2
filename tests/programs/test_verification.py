"""Artifacts that are not what their reports say, each spoilt in one place."""

import json

import numpy as np
import pytest

from jobs.problems import Problem
from jobs.program import open_program
from jobs.program_archive import FIXED, GRAPH, WEIGHTS_CONFIG, write_archive
from jobs.recipe import parse_recipe
from programs.pipeline import compress_program
from programs.values import ProgramFile
from programs.verification import verify_program

ROUND = ({"op": "quantize", "scheme": "w8a16"},)
PRUNE = ({"op": "prune", "sparsity": 0.5},)
SHRINK = ({"op": "shrink", "width": 0.5},)


@pytest.fixture
def spoil(make_program, tmp_path):
    """Give a function that makes an artifact, changes entries of it, and has it verified."""

    def run(steps, change=None, kept=None, names=None):
        folder, _ = make_program("residual")
        recipe, out = parse_recipe({"steps": steps}), tmp_path / "artifact"
        out.mkdir()
        report, found = compress_program(folder, out, recipe, on_progress=lambda _: None)
        path = out / "model.pt2"
        program = open_program(path)
        file = ProgramFile(program)
        entries = {name: bytearray(file.entry(name)) for name in program.spans if name not in FIXED}
        homes = {name: tensor.entry for name, tensor in program.tensors.items()}
        if change is not None:
            change(entries, homes)
        write_archive(
            path,
            lambda writer: [writer.add(name, [raw], len(raw)) for name, raw in entries.items()],
        )
        if kept is not None:
            kept(found)
        if names is not None:
            tensors = tuple(one for one in report.tensors if one.name in names)
            report = report.model_copy(update={"tensors": tensors})
        return verify_program(folder, out, recipe, report, found, on_progress=lambda _: None)

    return run


def floats(entries, homes, name):
    return np.frombuffer(entries[homes[name]], np.float32)


def one_value(entries, homes):
    floats(entries, homes, "stem.bias")[3] += 0.25


def one_step(entries, homes):
    values = np.frombuffer(entries[homes["stem.weight"]], np.int8)
    values[5] += 2 if values[5] < 100 else -2


def a_scale(entries, homes):
    floats(entries, homes, "down.weight_scale")[7] *= 1.5


def a_scale_that_is_none(entries, homes):
    floats(entries, homes, "down.weight_scale")[7] = np.nan


def an_unpruned_value(entries, homes):
    weight = floats(entries, homes, "stem.weight")
    weight[np.flatnonzero(weight == 0)[0]] = 0.5


def edit(entries, name, change):
    document = json.loads(entries[name])
    change(document)
    entries[name] = bytearray(json.dumps(document).encode())


def another_stride(entries, homes):
    """Has the last convolution make other places than the Linear takes."""

    def change(document):
        nodes = document["graph_module"]["graph"]["nodes"]
        [node] = [n for n in nodes if n["target"].endswith("conv2d.default") and
                  any(i["arg"].get("as_ints") == [2, 2] for i in n["inputs"])]  # fmt: skip
        for given in node["inputs"]:
            if given["arg"].get("as_ints") == [2, 2]:
                given["arg"]["as_ints"] = [1, 1]

    edit(entries, GRAPH, change)


def another_input(entries, homes):
    def change(document):
        size = document["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][2]
        size["as_int"] += 1

    edit(entries, GRAPH, change)


def an_operator_that_reads_files(entries, homes):
    def change(document):
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.aten.from_file.default"

    edit(entries, GRAPH, change)


def a_pickled_weight(entries, homes):
    edit(entries, WEIGHTS_CONFIG, lambda config: config["config"]["stem.bias"].update(
        use_pickle=True
    ))  # fmt: skip


def another_channel(kept):
    places = kept["down.weight"][0]
    missing = np.setdiff1d(np.arange(24), places)
    kept["down.weight"][0] = np.sort(np.append(places[1:], missing[0]))


def a_channel_that_is_none(kept):
    kept["down.weight"][0] = kept["down.weight"][0] + 20


CASES = {
    "a float that moved": (ROUND, {"change": one_value}, "'stem.bias' row 0: column 3"),
    "an int8 value two steps off": (ROUND, {"change": one_step}, "'stem.weight' row 0: column 5"),
    "a scale that is too large": (ROUND, {"change": a_scale}, "'down.weight' row 7"),
    "a scale that is no number": (ROUND, {"change": a_scale_that_is_none}, "has a scale that is"),
    "int8 that nobody claims": (ROUND, {"names": ["down.weight"]}, "which nothing asked for"),
    "a pruned weight that came back": (PRUNE, {"change": an_unpruned_value}, "'stem.weight' row"),
    "zeros that nobody claims": (PRUNE, {"names": ["down.weight"]}, "is neither the model's"),
    "another channel than is claimed": (SHRINK, {"kept": another_channel}, "'down.weight'"),
    "a channel that there is not": (SHRINK, {"kept": a_channel_that_is_none}, "that are none"),
    "a graph that does not fit": (ROUND, {"change": another_stride}, "does not fit together"),
    "another input": (ROUND, {"change": another_input}, "takes or gives other tensors"),
    "an operator not accepted": (ROUND, {"change": an_operator_that_reads_files}, "from_file"),
    "a pickle": (ROUND, {"change": a_pickled_weight}, "it is pickled"),
}


@pytest.mark.parametrize(("steps", "spoilt", "told"), CASES.values(), ids=CASES.keys())
def test_an_artifact_that_is_not_what_is_said_fails(spoil, steps, spoilt, told):
    with pytest.raises(Problem) as caught:
        spoil(steps, **spoilt)

    assert caught.value.code == "invalid_artifact"
    assert told in caught.value.detail


@pytest.mark.parametrize("steps", [ROUND, PRUNE, SHRINK], ids=["round", "prune", "shrink"])
def test_an_artifact_that_is_what_is_said_passes(spoil, steps):
    verification = spoil(steps)

    assert verification.tensors == 19
    assert verification.rows > 20
    assert (verification.max_error_steps is not None) == (steps is ROUND)
