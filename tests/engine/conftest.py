"""Checkpoints made on the spot, and what compressing them gives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.pipeline import compress
from jobs.recipe import parse_recipe
from jobs.report import Report
from planning.working_set import CHUNK_BYTES

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pressed:
    """An artifact and its report."""

    report: Report
    folder: Path

    @property
    def tensors(self) -> Tensors:
        """Everything in the artifact's safetensors files."""
        return {
            name: tensor
            for path in sorted(self.folder.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }


@pytest.fixture
def press(tmp_path: Path) -> Callable[..., Pressed]:
    """Compress a folder by the steps of a recipe."""
    count = 0

    def run(
        model: Path,
        *steps: dict[str, Any],
        chunk_bytes: int = CHUNK_BYTES,
        threads: int = 2,
        **recipe: Any,
    ) -> Pressed:
        nonlocal count
        count += 1
        artifact = tmp_path / f"artifact-{count}"
        artifact.mkdir()
        parsed = parse_recipe({"steps": list(steps), **recipe})
        report = compress(
            model,
            artifact,
            parsed,
            on_progress=lambda _: None,
            chunk_bytes=chunk_bytes,
            threads=threads,
        )
        return Pressed(report, artifact)

    return run
