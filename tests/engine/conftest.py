"""Checkpoints made on the spot, and what compressing them gives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.pipeline import compress
from engine.verification import verify
from engine.verified_forms import claims_of
from jobs.recipe import parse_recipe
from jobs.report import Report, Verification
from planning.working_set import CHUNK_BYTES

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pressed:
    """An artifact, its report and what was verified."""

    report: Report
    folder: Path
    verification: Verification

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
    """Compress a folder by the steps of a recipe, and verify the artifact."""
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
        # Every artifact that a test makes must pass what a job's must.
        claims = claims_of(report)
        verification = verify(
            model, artifact, parsed, claims, report.shrunk, on_progress=lambda _: None
        )
        return Pressed(report, artifact, verification)

    return run
