"""What plans say of memory beside what jobs hold: `python -m benchmarks.prediction`.

The claims: a plan made from headers alone is within 10 % of the peak that is measured; no job holds
more than its budget; the smallest budget of the plan works, and one byte less is refused.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finished import run_job
from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish, table
from benchmarks.processes import running_stack
from benchmarks.zoo import ZOO
from modelpress import Client, JobFailed, ProblemError

_W8A16, _W8A8 = ({"op": "quantize", "scheme": scheme} for scheme in ("w8a16", "w8a8"))
_HALF = {"op": "prune", "sparsity": 0.5}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "w8a16": [_W8A16],
    "w8a8, 50 % per tensor": [_HALF, _W8A8],
    "50 % of every row at random": [{**_HALF, "method": "random", "scope": "row"}],
    "w8a16, 50 % global": [{**_HALF, "scope": "global"}, _W8A16],
    "2:4": [{"op": "prune", "structure": "2:4"}],
}
_HEAD = (
    "model", "recipe", "planned MB", "held MB", "of planned", "smallest budget MB", "held in it MB",
    "one byte less",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A model and a recipe.

    Attributes:
        model: The model's name.
        recipe: The recipe's.
        planned_bytes: Peak memory that the plan said of the job.
        held_bytes: What the job's report says.
        least_bytes: The smallest budget that the plan said would do.
        held_in_least_bytes: What the report of a job with that budget says.
        refusal: The code with which one byte less was refused.
    """

    model: str
    recipe: str
    planned_bytes: int
    held_bytes: int
    least_bytes: int
    held_in_least_bytes: int
    refusal: str

    @property
    def ratio(self) -> float:
        """Held over planned."""
        return self.held_bytes / self.planned_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Plans beside jobs")
    parser.add_argument("--models", nargs="+", choices=ZOO, default=list(ZOO))
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    arguments = parser.parse_args()
    machine = describe_machine("torch", "numba")
    with tempfile.TemporaryDirectory(prefix="modelpress-prediction-") as folder:
        pairs = list(take_pairs(Path(folder), arguments.models))
    ratios = [pair.ratio for pair in pairs]
    text = (
        f"{machine} {len(pairs)} pairs; a plan from headers alone, a job without a budget, a job "
        "with the smallest budget of the plan, and one with a byte less. Memory is resident, of "
        f"all processes of the job. Held over planned: {min(ratios):.3f} to {max(ratios):.3f}, "
        f"median {statistics.median(ratios):.3f}."
    )
    publish(arguments.page, "prediction", f"{text}\n\n{prediction_table(pairs)}")


def take_pairs(folder: Path, models: Sequence[str]) -> Iterator[Pair]:
    """Plan and run every recipe on every model.

    Args:
        folder: An empty folder.
        models: Their names in the zoo.

    Yields:
        The pairs, model by model.
    """
    with running_stack(folder / "data") as stack, Client(stack.url) as client:
        _warm_up(client, folder / "first")
        for name in models:
            model = folder / "model"
            ZOO[name].write(model)
            model_id = client.upload_model(model).id
            for recipe, steps in RECIPES.items():
                members = {"steps": steps, "output": {"format": ZOO[name].output_format}}
                pair = _take(client, (name, model, model_id), recipe, members)
                print(f"{pair.model}, {pair.recipe}: {pair.ratio:.3f} of planned", flush=True)
                yield pair
            shutil.rmtree(model)


def prediction_table(pairs: Sequence[Pair]) -> str:
    """Write the table: a row for each pair."""
    return table(
        _HEAD,
        [
            (
                pair.model,
                pair.recipe,
                f"{pair.planned_bytes / 1e6:.1f}",
                f"{pair.held_bytes / 1e6:.1f}",
                f"{pair.ratio:.3f}",
                f"{pair.least_bytes / 1e6:.1f}",
                f"{pair.held_in_least_bytes / 1e6:.1f}",
                pair.refusal,
            )
            for pair in pairs
        ],
    )


def _warm_up(client: Client, folder: Path) -> None:
    """Have a worker tell what its processes hold, as every worker has after its first jobs."""
    ZOO["BERT that only its code knows, fp16"].write(folder)
    run_job(client, client.upload_model(folder).id, {"steps": [_W8A16]})


def _take(client: Client, model: tuple[str, Path, str], name: str, recipe: dict[str, Any]) -> Pair:
    kind, path, model_id = model
    plan = client.plan(path, recipe)
    least = plan["smallest_budget"]["host_memory"]
    return Pair(
        model=kind,
        recipe=name,
        planned_bytes=plan["memory"]["predicted_peak_bytes"],
        held_bytes=_held(client, model_id, recipe),
        least_bytes=least,
        held_in_least_bytes=_held(client, model_id, _within(recipe, least)),
        refusal=_refusal(client, model_id, _within(recipe, least - 1)),
    )


def _within(recipe: dict[str, Any], host_memory: int) -> dict[str, Any]:
    return {**recipe, "budget": {"host_memory": host_memory}}


def _held(client: Client, model_id: str, recipe: dict[str, Any]) -> int:
    job = run_job(client, model_id, recipe)
    held = client.report(job.id)["memory"]["measured_peak_bytes"]
    client.delete(job.id)
    return int(held)


def _refusal(client: Client, model_id: str, recipe: dict[str, Any]) -> str:
    try:
        client.wait(client.submit(model_id, recipe, use_cache=False).id)
    except ProblemError as error:
        return f"{error.status} at once"
    except JobFailed as error:
        # Only the model's own code can tell what it is made of, and the job asks that.
        return f"failed: {error.code}"
    return "ran"


if __name__ == "__main__":
    main()
