"""Training in a memory budget, beside plain PyTorch and the Trainer of transformers.

`python -m benchmarks.finetuning`. The claims: a budget below what the whole batch takes is kept,
and costs little time; one below what anything takes is refused with the least that works.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.finished import run_job
from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish, table
from benchmarks.peers.environments import python_of
from benchmarks.processes import running_stack
from benchmarks.watching import watch
from modelpress import Client, Job, JobFailed, ProblemError

_SHARES = (1.0, 0.6, 0.4, 0.3, 0.1)
_VOCABULARY, _LENGTH = 32_000, 256


def main() -> None:
    arguments = _read_arguments()
    machine = describe_machine("torch", "transformers")
    with tempfile.TemporaryDirectory(prefix="modelpress-finetuning-") as name:
        folder = Path(name)
        model, rows = folder / "model", folder / "rows.npz"
        parameters = _write_model(model, arguments.layers)
        chance = np.random.default_rng(0)
        np.savez(rows, input_ids=chance.integers(0, _VOCABULARY, (arguments.batch, _LENGTH)))
        found = [_plain(model, rows, arguments)]
        print(found[0], flush=True)
        naive = float(found[0][2].replace(",", ""))
        with running_stack(folder / "data") as running, Client(running.url) as client:
            found += _ours(client, model, rows, naive * 1e6, arguments)
        found += _trainer(model, rows, arguments)
    publish(arguments.page, "finetuning", _text(machine, parameters, found, arguments))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="of 768; default 12")
    parser.add_argument("--batch", type=int, default=32, help="effective batch; default 32")
    parser.add_argument("--steps", type=int, default=2, help="of each way; default 2")
    parser.add_argument("--share", type=float, nargs="+", default=_SHARES, help="of plain's peak")
    parser.add_argument("--no-peer", action="store_true", help="leave the Trainer out")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    return parser.parse_args()


def _write_model(folder: Path, layers: int) -> int:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=768, intermediate_size=2048, num_attention_heads=12,
        num_key_value_heads=12, num_hidden_layers=layers, max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(model.num_parameters())


def _plain(model: Path, rows: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    command = [sys.executable, "-m", "benchmarks.plain_training", model, rows]
    watched = watch([*map(str, command), str(arguments.steps), str(arguments.batch)])
    seconds = watched.seconds / arguments.steps
    peak = f"{watched.resident_bytes / 1e6:,.0f}"
    return "plain PyTorch, the whole batch", "", peak, f"{seconds:.1f}", str(arguments.batch), ""


def _ours(
    client: Client, model: Path, rows: Path, naive_bytes: float, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    model_id, dataset = client.upload_model(model).id, client.upload_dataset(rows).id
    step: dict[str, Any] = {
        "op": "finetune", "dataset": dataset, "steps": arguments.steps,
        "batch_size": arguments.batch, "max_length": _LENGTH, "schedule": "constant",
    }  # fmt: skip
    for share in arguments.share:
        name, budget = f"ours, a budget of {share:.0%}", int(share * naive_bytes)
        while True:
            recipe = {"steps": [step], "budget": {"host_memory": budget}}
            try:
                yield _row(client, name, run_job(client, model_id, recipe), budget)
                break
            except (ProblemError, JobFailed) as error:
                problem = error.job.failure if isinstance(error, JobFailed) else error.problem
                if problem is None or problem["code"] != "memory_budget_exceeded":
                    raise
                yield name, f"{budget / 1e6:,.0f}", "refused", "", "", ""
                name, budget = "ours, the least that this named", problem["smallest_bytes"]


def _row(client: Client, name: str, job: Job, budget: int) -> tuple[str, ...]:
    report = client.report(job.id)
    training, peak = report["training"], report["memory"]["measured_peak_bytes"]
    rows = report["training"]["rows_per_second"]
    row = (
        name,
        f"{budget / 1e6:,.0f}",
        f"{peak / 1e6:,.0f}",
        f"{training['batch_size'] / rows:.1f}",
        str(training["micro_batch_size"]),
        ", ".join(training["savings"]),
    )
    print(row, [point["loss"] for point in training["losses"]], training["decisions"], flush=True)
    return row


def _trainer(model: Path, rows: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    python = None if arguments.no_peer else python_of("llmcompressor")
    for micro_batch in () if python is None else (1, 8):
        command = [python, "-m", "benchmarks.peers.trainer", model, rows, arguments.steps]
        name = f"Trainer of transformers, {micro_batch} at a time"
        try:
            watched = watch([*map(str, command), str(arguments.batch), str(micro_batch)])
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(error, flush=True)
            yield name, "", "failed", "", "", ""
            continue
        peak = f"{watched.resident_bytes / 1e6:,.0f}"
        seconds = f"{watched.seconds / arguments.steps:.1f}"
        row = name, "", peak, seconds, str(micro_batch), ""
        print(row, flush=True)
        yield row


def _text(
    head: str, parameters: int, rows: list[tuple[str, ...]], arguments: argparse.Namespace
) -> str:
    columns = ("way", "budget MB", "peak MB", "seconds per step", "rows at a time", "savings")
    note = (
        f"A Llama of {parameters:,} parameters in float32, AdamW, {arguments.batch} rows of "
        f"{_LENGTH} tokens a step, {arguments.steps} steps; one run each."
    )
    return f"{head} {note}\n\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
