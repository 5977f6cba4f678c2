import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import save_file

from engine.pipeline import compress
from jobs import equal_jobs
from jobs.blobs import now_ms
from jobs.equal_jobs import answer, equality_key, link_or_copy, remember
from jobs.job import Artifact, ArtifactFile, JobResult, JobSpec, new_job_id
from jobs.recipe import parse_recipe
from jobs.sweeping import sweep

MODEL = "mdl_" + "ab" * 32
INT8 = {"op": "quantize", "scheme": "w8a16"}
STEPS = {"steps": [INT8]}
REPORT = json.loads((Path(__file__).parents[1] / "modelpress" / "report.json").read_text())
FILES = {"model.safetensors": b"weights", "sub/tokenizer.json": b"{}"}


def submit(blobs, recipe=STEPS, model=MODEL, **members) -> JobSpec:
    spec = JobSpec(
        id=new_job_id(), model=model, recipe=parse_recipe(recipe), created_ms=now_ms(), **members
    )
    blobs.write_spec(spec)
    return spec


def succeed(blobs, spec: JobSpec) -> Path:
    """End a job as a worker does, and give its artifact's folder."""
    folder = blobs.job_folder(spec.id) / "artifact-7"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    files = [
        ArtifactFile(path=path, bytes=len(content), blake3=blake3(content).hexdigest())
        for path, content in FILES.items()
    ]
    artifact = Artifact(bytes=9, digest="blake3:" + "cd" * 32, files=tuple(files))
    blobs.write_report(spec.id, REPORT)
    blobs.publish_result(
        JobResult(
            id=spec.id,
            state="succeeded",
            attempt=1,
            artifact_folder=folder.name,
            artifact=artifact,
            finished_ms=1,
        )
    )
    remember(blobs, spec)
    return folder


@pytest.fixture
def made(blobs) -> JobSpec:
    """A job that has its artifact."""
    spec = submit(blobs)
    succeed(blobs, spec)
    return spec


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def key(recipe, model=MODEL) -> str:
    return equality_key(model, parse_recipe(recipe))


@pytest.mark.parametrize(
    "more",
    [
        {"budget": {"host_memory": "2GiB", "runtime": "2h"}},
        {"gate": {"max_size_ratio": 0.6}},
        {"output": {"format": "auto"}},
        {"steps": [{"op": "quantize", "scheme": "w8a16", "exclude": [], "group_size": None}]},
    ],
)
def test_what_does_not_decide_the_bytes_leaves_the_key(more):
    assert key(STEPS | more) == key(STEPS)


@pytest.mark.parametrize(
    "more",
    [
        {"output": {"format": "safetensors"}},
        {"steps": [{"op": "quantize", "scheme": "w8a8"}]},
        {"steps": [{"op": "quantize", "scheme": "w8a16", "exclude": ["a"]}]},
        {"steps": [{"op": "prune", "sparsity": 0.5}, *STEPS["steps"]]},
        {"steps": [{"op": "quantize", "scheme": "w8a16", "embeddings": True}]},
        {"evaluate": {}},
        {"evaluate": {"rows": 9}},
    ],
)
def test_what_decides_the_bytes_or_the_report_changes_the_key(more):
    assert key(STEPS | more) != key(STEPS)


def test_another_model_or_engine_has_another_key(monkeypatch):
    ours = key(STEPS)

    assert key(STEPS, model="mdl_" + "cd" * 32) != ours
    monkeypatch.setattr(equal_jobs, "ENGINE_VERSION", equal_jobs.ENGINE_VERSION + 1)
    assert key(STEPS) != ours


def test_an_equal_job_answers_with_its_files_and_report(blobs, made):
    spec = submit(blobs, STEPS | {"budget": {"runtime": "1h"}})

    found = answer(blobs, spec)

    theirs = blobs.read_result(made.id)
    assert found.report == REPORT
    assert (found.result.state, found.result.cache) == ("succeeded", "hit")
    assert (found.result.id, found.result.attempt) == (spec.id, 0)
    assert found.result.artifact == theirs.artifact
    folder = blobs.job_folder(spec.id) / found.result.artifact_folder
    assert contents(folder) == FILES
    assert os.path.samefile(
        folder / "model.safetensors", blobs.artifact_folder(made.id) / "model.safetensors"
    )


def test_a_gate_on_latency_is_not_judged_by_a_job_that_measured_none(blobs):
    evaluated = STEPS | {"evaluate": {}}
    first = submit(blobs, evaluated)
    succeed(blobs, first)
    quality = json.loads(json.dumps(REPORT["quality"]))
    for name in ("before", "after"):
        quality[name] |= {"latency_seconds": {}, "blocks": 2}
    blobs.write_report(first.id, REPORT | {"quality": quality})

    plain = answer(blobs, submit(blobs, evaluated))
    gated = answer(blobs, submit(blobs, evaluated | {"gate": {"max_latency_ratio": 100.0}}))

    assert plain.result.state == "succeeded"
    assert gated is None


def test_digests_that_came_after_the_job_come_along(blobs, made):
    (blobs.job_folder(made.id) / "sha256.json").write_text("{}")
    spec = submit(blobs)

    answer(blobs, spec)

    assert (blobs.job_folder(spec.id) / "sha256.json").read_text() == "{}"


def test_either_of_two_equal_jobs_can_be_removed_and_the_other_answers_a_third(blobs, made):
    second, third = submit(blobs), submit(blobs)
    found = answer(blobs, second)
    blobs.write_report(second.id, found.report)
    blobs.publish_result(found.result)
    remember(blobs, second)

    blobs.remove_job(made.id)

    assert contents(blobs.artifact_folder(second.id)) == FILES
    assert answer(blobs, third).result.artifact == found.result.artifact


def break_artifact(blobs, job_id):
    (blobs.artifact_folder(job_id) / "model.safetensors").write_bytes(b"w")


def lose_file(blobs, job_id):
    (blobs.artifact_folder(job_id) / "sub" / "tokenizer.json").unlink()


def lose_report(blobs, job_id):
    (blobs.job_folder(job_id) / "report.json").unlink()


def spoil_report(blobs, job_id):
    blobs.write_report(job_id, {"of": "another version"})


def spoil_result(blobs, job_id):
    (blobs.job_folder(job_id) / "result.json").write_text("{")


def lose_marks(blobs, job_id):
    shutil.rmtree(blobs.root / "equal")
    (blobs.root / "equal").mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        break_artifact,
        lose_file,
        lose_report,
        spoil_report,
        spoil_result,
        lose_marks,
        lambda blobs, job_id: blobs.remove_job(job_id),
    ],
)
def test_a_job_without_its_files_answers_nothing_and_leaves_nothing(blobs, made, harm):
    spec = submit(blobs)

    harm(blobs, made.id)

    assert answer(blobs, spec) is None
    assert os.listdir(blobs.job_folder(spec.id)) == ["spec.json"]


def test_a_damaged_job_does_not_hide_one_that_is_whole(blobs, made):
    newer = submit(blobs)
    succeed(blobs, newer)
    break_artifact(blobs, newer.id)

    assert answer(blobs, submit(blobs)).result.state == "succeeded"


def test_a_job_that_is_to_be_run_is_not_answered(blobs, made):
    assert answer(blobs, submit(blobs, use_cache=False)) is None


def test_a_gate_that_is_not_passed_fails_the_job_without_its_artifact(blobs, made):
    spec = submit(blobs, STEPS | {"gate": {"max_size_ratio": 0.1}})

    found = answer(blobs, spec)

    assert (found.result.state, found.result.failure["code"]) == ("failed", "gate_failed")
    assert found.result.artifact is None
    assert found.report == REPORT
    assert os.listdir(blobs.job_folder(spec.id)) == ["spec.json"]


def test_files_that_cannot_be_put_here_are_no_answer_and_leave_nothing(blobs, made):
    spec = submit(blobs)

    def put(source: Path, target: Path) -> None:
        if target.name == "tokenizer.json":
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        os.link(source, target)

    assert answer(blobs, spec, put) is None
    assert os.listdir(blobs.job_folder(spec.id)) == ["spec.json"]


def test_where_links_are_not_possible_files_are_copied(blobs, made, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", refuse)
    spec = submit(blobs)

    found = answer(blobs, spec, link_or_copy)

    folder = blobs.job_folder(spec.id) / found.result.artifact_folder
    assert contents(folder) == FILES
    break_artifact(blobs, made.id)
    assert contents(folder) == FILES


def test_a_job_that_is_removed_while_it_answers_gives_all_of_it_or_nothing(blobs):
    made = [submit(blobs) for _ in range(20)]
    for spec in made:
        succeed(blobs, spec)
    stop = threading.Event()
    found = []

    def ask():
        while not stop.is_set():
            spec = submit(blobs)
            got = answer(blobs, spec)
            folder = blobs.job_folder(spec.id)
            left = contents(folder / "artifact-0") if got else os.listdir(folder)
            found.append(left == (FILES if got else ["spec.json"]))

    thread = threading.Thread(target=ask)
    thread.start()
    for spec in made:
        blobs.remove_job(spec.id)
    stop.set()
    thread.join()

    assert found
    assert all(found)
    assert answer(blobs, submit(blobs)) is None


def test_a_mark_that_cannot_be_made_harms_nobody(blobs):
    spec = submit(blobs)
    (blobs.root / "equal").rmdir()

    succeed(blobs, spec)

    assert blobs.read_result(spec.id).state == "succeeded"


def test_sweeping_removes_the_marks_of_jobs_that_are_gone(blobs, made):
    other = submit(blobs, STEPS | {"output": {"format": "safetensors"}})
    succeed(blobs, other)
    blobs.remove_job(other.id)

    sweep(blobs)

    assert [path.name for path in (blobs.root / "equal").rglob("job_*")] == [made.id]
    assert len(list((blobs.root / "equal").iterdir())) == 1


PRUNE = {"op": "prune", "sparsity": 0.5}
#: What the engine writes for a fixed model, by recipe. Where one of these has to be changed,
#: ENGINE_VERSION has to be raised with it.
WRITTEN_BY_VERSION_2 = {
    "w8a16": "d614c404d990e698703f48742f4d6b12",
    "w8a8": "d2e4b50a2cccc5afb9fdd850ba3358b2",
    "groups of 32": "a13af18333a6b7d9ce85ffb54af9ce2b",
    "magnitude": "082e0e0e01f684f15cf92eb11ae5b608",
    "magnitude, global": "7cad1b8cdcb6056daa169a81e9314207",
    "random": "56b929fd3e0d41e0acfcfca74dbf40b9",
    "2:4": "d7f170edd50a86d7f72b628522fda76f",
}
RECIPES = {
    "w8a16": [INT8],
    "w8a8": [INT8 | {"scheme": "w8a8"}],
    "groups of 32": [INT8 | {"group_size": 32}],
    "magnitude": [PRUNE, INT8],
    "magnitude, global": [PRUNE | {"scope": "global"}, INT8],
    "random": [PRUNE | {"method": "random", "seed": 7}],
    "2:4": [{"op": "prune", "structure": "2:4"}, INT8],
}


def test_the_engine_writes_what_its_version_stands_for(tmp_path):
    # Integers modulo a prime, so that no library's random numbers decide about the model.
    count = 64 * 128
    weight = (np.arange(1, count + 1) * 40_503 % 65_521).astype(np.float32) / 65_521 - 0.5
    tensors = {"a.weight": weight.reshape(64, 128), "b.weight": weight.reshape(64, 128) / 4}
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")

    written = {}
    for name, steps in RECIPES.items():
        folder = tmp_path / name
        folder.mkdir()
        recipe = parse_recipe({"steps": steps})
        compress(tmp_path / "model", folder, recipe, on_progress=lambda _: None)
        found = contents(folder)
        listing = "".join(f"{blake3(found[path]).hexdigest()} {path}\n" for path in sorted(found))
        written[name] = blake3(listing.encode()).hexdigest(16)

    assert equal_jobs.ENGINE_VERSION == 2
    assert written == WRITTEN_BY_VERSION_2
