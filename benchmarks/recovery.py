"""What training brings back of a language model that was pruned: `python -m benchmarks.recovery`.

The claim: half of the perplexity that pruning took, or more, comes back by training on text or by
learning from what the model answered before, with the pruned weights still zero and int8 after it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from benchmarks.finished import run_job
from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish, table
from benchmarks.processes import running_stack
from benchmarks.small_language_model import LENGTH, texts, train, write_rows
from modelpress import Client

_PRUNE = {"op": "prune", "sparsity": 0.5}
_ROUND = {"op": "quantize", "scheme": "w8a8"}
_TRAIN = {"op": "finetune", "batch_size": 16, "max_length": LENGTH, "learning_rate": 1e-3}
WAYS: dict[str, list[dict[str, Any]]] = {
    "pruned": [_PRUNE],
    "pruned, trained on text, w8a8": [_PRUNE, _TRAIN, _ROUND],
    "pruned, taught by the model, w8a8": [_PRUNE, _TRAIN | {"distill": 1.0}, _ROUND],
}


def main() -> None:
    arguments = _read_arguments()
    transformers.logging.set_verbosity_error()
    machine = describe_machine("torch", "transformers")
    with tempfile.TemporaryDirectory(prefix="modelpress-recovery-") as name:
        folder = Path(name)
        train(folder / "model", arguments.steps)
        seen, held_out = texts()
        write_rows(folder / "held-out.jsonl", held_out, 256, seed=1)
        write_rows(folder / "training.jsonl", seen, arguments.rows, seed=2)
        with running_stack(folder / "data") as running, Client(running.url) as client:
            rows = list(_compare(client, folder, arguments))
    note = (
        f"A model of {arguments.steps} steps of training, pruned to half of its weights by "
        f"magnitude; {arguments.epochs} epochs of {arguments.rows} rows of {LENGTH} tokens."
    )
    columns = ("way", "perplexity", "of what was lost came back", "KL", "weights held zero")
    publish(arguments.page, "recovery", f"{machine} {note}\n\n{table(columns, rows)}")


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="of the model; default 4000")
    parser.add_argument("--epochs", type=int, default=2, help="after pruning; default 2")
    parser.add_argument("--rows", type=int, default=640, help="to train on; default 640")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    return parser.parse_args()


def _compare(
    client: Client, folder: Path, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    model = client.upload_model(folder / "model").id
    held_out = client.upload_dataset(folder / "held-out.jsonl").id
    trained = {
        "dataset": client.upload_dataset(folder / "training.jsonl").id,
        "epochs": arguments.epochs,
    }
    evaluate = {"dataset": held_out, "batch_size": 16, "max_length": LENGTH}
    lost: float | None = None
    for name, ways in WAYS.items():
        steps = [trained | step if step["op"] == "finetune" else step for step in ways]
        job = run_job(client, model, {"steps": steps, "evaluate": evaluate})
        report = client.report(job.id)
        quality = report["quality"]
        before, after = (quality[at]["perplexity"] for at in ("before", "after"))
        if lost is None:
            lost = after - before
            yield "as it came", f"{before:.3f}", "", "", ""
        held = report["training"]["weights_held_zero"] if report.get("training") else None
        yield (
            name,
            f"{after:.3f}",
            f"{1 - (after - before) / lost:.0%}" if lost > 0 else "nothing was lost",
            f"{quality['agreement']['kl_divergence']:.4f}",
            "" if held is None else f"{held:,}",
        )
        print(name, before, after, held, flush=True)


if __name__ == "__main__":
    main()
