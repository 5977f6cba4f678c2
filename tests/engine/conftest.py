"""Checkpoints made on the spot, and what compressing them gives."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.pipeline import CHUNK_BYTES, compress
from jobs.checkpoint import INDEX_NAME
from jobs.recipe import parse_recipe
from jobs.report import Report

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


def _save(folder: Path, tensors: Tensors, config: dict[str, Any] | None, shards: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    files = {"model.safetensors": names}
    if shards > 1:
        files = {
            f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)
        }
        weight_map = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index))
    for file, part in files.items():
        kept = {name: tensors[name].clone().contiguous() for name in part}
        save_file(kept, folder / file, metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint and give its folder."""

    def save(
        tensors: Tensors,
        config: dict[str, Any] | None = None,
        shards: int = 1,
        name: str = "model",
    ) -> Path:
        _save(tmp_path / name, tensors, config, shards)
        return tmp_path / name

    return save


@pytest.fixture
def press(tmp_path: Path) -> Callable[..., Pressed]:
    """Compress a folder by the steps of a recipe."""
    count = 0

    def run(
        model: Path, *steps: dict[str, Any], chunk_bytes: int = CHUNK_BYTES, **recipe: Any
    ) -> Pressed:
        nonlocal count
        count += 1
        artifact = tmp_path / f"artifact-{count}"
        artifact.mkdir()
        parsed = parse_recipe({"steps": list(steps), **recipe})
        report = compress(
            model, artifact, parsed, on_progress=lambda _: None, chunk_bytes=chunk_bytes
        )
        return Pressed(report, artifact)

    return run


@pytest.fixture(scope="session")
def weights() -> Callable[..., torch.Tensor]:
    """Draw reproducible weights with many equal magnitudes, as 16-bit training leaves them."""

    def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16).to(dtype)

    return draw
