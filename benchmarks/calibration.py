"""Methods that go by data, beside llm-compressor's: `python -m benchmarks.calibration`.

The claims: wanda loses less than magnitudes, gptq is no worse than the nearest steps, and a
calibration holds one block of a model at a time. The first two on a small language model that is
trained on the spot, with one judge of perplexity for all artifacts; the last on a synthetic Llama.
"""

import argparse
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.checkpoints import write_llama
from benchmarks.engine import SIZES
from benchmarks.finished import run_job
from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish, table
from benchmarks.peers.environments import python_of
from benchmarks.processes import running_stack
from benchmarks.small_language_model import LENGTH, texts, train
from benchmarks.watching import watch
from modelpress import Client

_PRUNE = {"op": "prune", "sparsity": 0.5}
STEPS: dict[str, dict[str, Any]] = {
    "magnitude 50 %": _PRUNE,
    "magnitude 50 %, by row": {**_PRUNE, "scope": "row"},
    "wanda 50 %": {**_PRUNE, "method": "wanda"},
    "wanda 50 %, by tensor": {**_PRUNE, "method": "wanda", "scope": "tensor"},
    "w8a16, nearest": {"op": "quantize", "scheme": "w8a16"},
    "w8a16, gptq": {"op": "quantize", "scheme": "w8a16", "method": "gptq"},
    "w8a8, nearest": {"op": "quantize", "scheme": "w8a8"},
    "w8a8, gptq": {"op": "quantize", "scheme": "w8a8", "method": "gptq"},
}
_BUDGET = "1.5GiB"
_PEER = "llm-compressor"
#: It counts wanda by row; its magnitude pruning is for training, and changes nothing in `oneshot`.
_PEER_HAS = STEPS.keys() - {
    "magnitude 50 %",
    "magnitude 50 %, by row",
    "wanda 50 %, by tensor",
}
_JUDGED_ROWS = 512


@dataclass(frozen=True)
class Judge:
    """Compares artifacts with the model that they were made from, on rows that none has seen.

    Attributes:
        model: The model's folder.
        rows: Tokens, [rows, `LENGTH`].
    """

    model: Path
    rows: torch.Tensor

    def judge(self, folder: Path) -> tuple[float, float]:
        """Give perplexity over the model's, and the mean divergence from it in nats."""
        loss = divergence = 0.0
        with torch.inference_mode():
            models = [
                transformers.AutoModelForCausalLM.from_pretrained(f, dtype="auto").eval()
                for f in (self.model, folder)
            ]
            for rows in self.rows.split(16):
                logits = [model(input_ids=rows).logits[:, :-1].float() for model in models]
                own, other = (values.log_softmax(2) for values in logits)
                targets = rows[:, 1:, None]
                loss += float((own.gather(2, targets) - other.gather(2, targets)).mean()) * len(
                    rows
                )
                divergence += float((own.exp() * (own - other)).sum(2).mean()) * len(rows)
        return math.exp(loss / len(self.rows)), divergence / len(self.rows)


def main() -> None:
    arguments = _read_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = describe_machine("torch", "transformers", "numba")
    with tempfile.TemporaryDirectory(prefix="modelpress-calibration-") as name:
        folder = Path(name)
        with running_stack(folder / "data") as running, Client(running.url) as client:
            train(folder / "small", arguments.steps if "quality" in arguments.parts else 1)
            if "quality" in arguments.parts:
                quality = _quality_text(
                    machine, _compare_quality(folder, client, arguments), arguments
                )
                publish(arguments.page, "calibration-quality", quality)
            if "memory" in arguments.parts:
                memory = _memory_text(
                    machine, _compare_memory(folder, client, arguments), arguments
                )
                publish(arguments.page, "calibration-memory", memory)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", choices=("quality", "memory"), default=("quality", "memory")
    )
    parser.add_argument("--steps", type=int, default=4000, help="of the training; default 4000")
    parser.add_argument("--size", choices=SIZES, default="1.1B", help="of the large model")
    parser.add_argument("--rows", type=int, default=16, help="that it is taken through; default 16")
    parser.add_argument("--methods", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--no-peer", action="store_true", help="leave llm-compressor out")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    return parser.parse_args()


def _compare_quality(
    folder: Path, client: Client, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    model = folder / "small"
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    seen, held_out = (torch.tensor(tokenizer("\n".join(part))["input_ids"]) for part in texts())
    judge = Judge(model, _rows_of(held_out, _JUDGED_ROWS))
    rows = folder / "rows.npz"
    np.savez(rows, input_ids=_rows_of(seen, 64).numpy())
    model_id, dataset = client.upload_model(model).id, client.upload_dataset(rows).id
    for name in arguments.methods:
        step, artifact = STEPS[name], folder / "artifact"
        job = run_job(client, model_id, _recipe(step, dataset))
        client.download(job.id, artifact)
        ours = judge.judge(artifact)
        shutil.rmtree(artifact)
        theirs = _judge_peer(judge, artifact, arguments, name, rows)
        yield name, *(f"{value:.5f}" for value in ours), *theirs
        print(name, ours, theirs, flush=True)


def _judge_peer(
    judge: Judge, artifact: Path, arguments: argparse.Namespace, name: str, rows: Path
) -> tuple[str, str]:
    command = _peer_command(judge.model, artifact, name, rows, arguments)
    if command is None or name not in _PEER_HAS:
        return "not run", ""
    try:
        watch([*map(str, command)], lambda: None)
        return tuple(f"{value:.5f}" for value in judge.judge(artifact))  # type: ignore[return-value]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(error, flush=True)
        return "failed", ""
    finally:
        shutil.rmtree(artifact, ignore_errors=True)


def _compare_memory(
    folder: Path, client: Client, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    model, rows = folder / "large", folder / "large.npz"
    llama = SIZES[arguments.size]
    write_llama(model, llama)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # The peer opens one, although it is given tokens.
        shutil.copy(folder / "small" / name, model)
    chance = np.random.default_rng(0)
    np.savez(rows, input_ids=chance.integers(0, llama.vocabulary, (arguments.rows, 256)))
    model_id, dataset = client.upload_model(model).id, client.upload_dataset(rows).id
    for name in [name for name in ("wanda 50 %", "w8a8, gptq") if name in arguments.methods]:
        recipe = _recipe(STEPS[name], dataset) | {"budget": {"host_memory": _BUDGET}}
        started = time.perf_counter()
        job = run_job(client, model_id, recipe)
        seconds = time.perf_counter() - started
        report = client.report(job.id)
        peak = report["memory"]["measured_peak_bytes"]
        predicted = report["memory"]["predicted_peak_bytes"]
        yield (
            name,
            "ours, a job",
            f"{seconds:,.0f}",
            f"{peak / 1e6:,.0f}",
            f"{predicted / 1e6:,.0f}",
        )
        print(name, seconds, peak, predicted, flush=True)
        command = _peer_command(model, folder / "output", name, rows, arguments)
        if command is None:
            yield name, _PEER, "not run", "", ""
            continue
        try:
            watched = watch([*map(str, command)], lambda: None)
        except RuntimeError as error:
            print(error, flush=True)
            yield name, _PEER, "failed", "", ""
        else:
            peak = watched.resident_bytes
            yield name, _PEER, f"{watched.seconds:,.0f}", f"{peak / 1e6:,.0f}", ""
            print(name, watched, flush=True)
        shutil.rmtree(folder / "output", ignore_errors=True)


def _peer_command(
    model: Path, output: Path, name: str, rows: Path, arguments: argparse.Namespace
) -> list[Path | str] | None:
    python = None if arguments.no_peer else python_of("llmcompressor")
    script = "benchmarks.peers.calibrated"
    return None if python is None else [python, "-m", script, model, output, name, rows]


def _recipe(step: dict[str, Any], dataset: str) -> dict[str, Any]:
    is_calibrated = step.get("method") in ("wanda", "gptq")
    return {"steps": [step]} | ({"calibrate": {"dataset": dataset}} if is_calibrated else {})


def _rows_of(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Take rows of `LENGTH` tokens, evenly spread over all."""
    starts = torch.linspace(0, len(ids) - LENGTH, count).long()
    return torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])


def _quality_text(head: str, rows: Iterable[tuple[str, ...]], arguments: argparse.Namespace) -> str:
    columns = ("method", "ours: perplexity ratio", "KL", f"{_PEER}: perplexity ratio", "KL")
    note = f"{arguments.steps} steps of training; 64 rows of {LENGTH} tokens to calibrate with."
    return f"{head} {note}\n\n{table(columns, rows)}"


def _memory_text(head: str, rows: Iterable[tuple[str, ...]], arguments: argparse.Namespace) -> str:
    columns = ("method", "by", "seconds", "peak MB", "planned MB")
    note = f"A Llama of {arguments.size}, {arguments.rows} rows of 256 tokens; one run each."
    return f"{head} {note} Our jobs have a budget of {_BUDGET}.\n\n{table(columns, rows)}"


if __name__ == "__main__":
    main()
