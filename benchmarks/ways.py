"""The ways from a checkpoint to an int8 one that `benchmarks.engine` compares, each a command."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import python_of

_W8A16, _W8A8 = ({"op": "quantize", "scheme": scheme} for scheme in ("w8a16", "w8a8"))
_MAGNITUDE = {"op": "prune", "method": "magnitude", "sparsity": 0.5}

#: Rows that others are compared with.
COPY, FLUSHED_COPY, OURS, JOB = "`cp -r`", "`cp -r` + fsync", "ours, w8a16", "ours, w8a16, as a job"

#: What the job does, which is what the row `OURS` does.
JOB_STEP = _W8A16

RECIPES: dict[str, list[dict[str, Any]]] = {
    OURS: [_W8A16],
    "ours, w8a8": [_W8A8],
    "ours, 50 % per tensor + w8a16": [_MAGNITUDE, _W8A16],
    "ours, 2:4 + w8a16": [{"op": "prune", "method": "magnitude", "structure": "2:4"}, _W8A16],
    "ours, 50 % global + w8a16": [{**_MAGNITUDE, "scope": "global"}, _W8A16],
}


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        name: Its row.
        command: What to run, given the model and a folder for the output that does not exist yet.
        judge: The interpreter that reads what it writes; None for copies.
        is_peer: Whether it is one of the tools that we compare ourselves with.
        has_stopwatch: Whether it tells when its work begins and ends.
    """

    name: str
    command: Callable[[Path, Path], list[str | Path]]
    judge: Path | None = None
    is_peer: bool = False
    has_stopwatch: bool = True


@dataclass(frozen=True)
class Peer:
    """A tool that quantizes to int8.

    Attributes:
        name: Its row.
        environment: Its virtual environment, and its requirements in `benchmarks/peers/`.
        script: The module of `benchmarks.peers` that runs it.
    """

    name: str
    environment: str
    script: str


PEERS = (
    Peer("llm-compressor, model_free_ptq", "llmcompressor", "model_free_ptq"),
    Peer("llm-compressor, oneshot", "llmcompressor", "oneshot"),
    Peer("torchao", "torchao", "torchao"),
    Peer("optimum-quanto", "quanto", "quanto"),
    Peer("bitsandbytes", "bitsandbytes", "bitsandbytes"),
)


def copies() -> list[Way]:
    """Give the copies that the file system makes, as they are and until all is on the disk."""
    flushed = 'cp -r "$0" "$1" && sync "$1"/*'
    return [
        Way(COPY, lambda model, output: ["cp", "-r", model, output], has_stopwatch=False),
        Way(
            FLUSHED_COPY,
            lambda model, output: ["sh", "-c", flushed, model, output],
            has_stopwatch=False,
        ),
    ]


def ours() -> list[Way]:
    """Give what our engine does, each recipe in a process of its own."""
    return [_ours(name, {"steps": steps}) for name, steps in RECIPES.items()]


def peers(names: list[str]) -> list[Way]:
    """Give the peers that are installed.

    Args:
        names: Names of their scripts.
    """
    return [
        _peer(peer.name, python, peer.script)
        for peer in PEERS
        if peer.script in names and (python := python_of(peer.environment)) is not None
    ]


def _ours(name: str, recipe: dict[str, Any]) -> Way:
    python = Path(sys.executable)
    text = json.dumps(recipe)
    return Way(
        name, lambda model, output: [python, "-m", "benchmarks.our_engine", model, output, text],
        judge=python,
    )  # fmt: skip


def _peer(name: str, python: Path, script: str) -> Way:
    return Way(
        name, lambda model, output: [python, "-m", f"benchmarks.peers.{script}", model, output],
        judge=python, is_peer=True,
    )  # fmt: skip
