"""What jobs are made of, and what must come of them, computed without any service."""

import itertools
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from safetensors.numpy import save_file

from engine.pipeline import compress
from jobs.recipe import parse_recipe

#: Inputs and outputs of the matrices: from 4 KB to 6 MB.
MODELS: dict[str, tuple[int, ...]] = {
    "4 KB": (24, 32, 8),
    "60 KB": (96, 128, 24),
    "400 KB": (256, 320, 64),
    "2 MB": (512, 640, 320),
    "6 MB": (1024, 1024, 512),
}
_W8A16, _W8A8 = ({"op": "quantize", "scheme": scheme} for scheme in ("w8a16", "w8a8"))
RECIPES: dict[str, dict[str, Any]] = {
    "w8a16": {"steps": [_W8A16]},
    "w8a8": {"steps": [_W8A8]},
    "50 %, w8a16": {"steps": [{"op": "prune", "sparsity": 0.5}, _W8A16]},
    "50 % global, w8a8": {"steps": [{"op": "prune", "sparsity": 0.5, "scope": "global"}, _W8A8]},
    "2:4, w8a16": {"steps": [{"op": "prune", "structure": "2:4"}, _W8A16]},
    "30 % at random": {"steps": [{"op": "prune", "method": "random", "sparsity": 0.3}]},
}
_OWN_SHAPE = (80, 96, 16)


class Materials:
    """The models of a run.

    Args:
        folder: Where they are written.
        seed: Of their weights.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._lock = threading.Lock()
        self._references: dict[tuple[str, str], dict[str, str]] = {}
        folder.mkdir()

    def model(self, name: str, number: int = 0) -> Path:
        """Give a model's file.

        Args:
            name: Its name; "" for one that only the wish of this number has.
            number: Of the wish.

        Returns:
            The file, written where it was not yet.
        """
        own = list(MODELS).index(name) if name else 1000 + number
        path = self._folder / f"{own}.safetensors"
        with self._lock:
            if not path.exists():
                rng = np.random.default_rng([self._seed, own])
                _write(path, rng, MODELS.get(name, _OWN_SHAPE))
        return path

    def reference(self, model: Path, recipe: str) -> dict[str, str]:
        """Give what a recipe makes of a model: the blake3 digest of every file but the manifest."""
        with self._lock:
            key = (model.name, recipe)
            if key not in self._references:
                self._references[key] = self._press(model, recipe)
            return self._references[key]

    def _press(self, model: Path, recipe: str) -> dict[str, str]:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            source, target = Path(name, "model"), Path(name, "artifact")
            source.mkdir()
            target.mkdir()
            shutil.copyfile(model, source / "model.safetensors")
            compress(source, target, parse_recipe(RECIPES[recipe]), on_progress=lambda _: None)
            return {path.name: blake3(path.read_bytes()).hexdigest() for path in target.iterdir()}


def _write(path: Path, rng: np.random.Generator, widths: tuple[int, ...]) -> None:
    tensors = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        tensors[f"{layer}.weight"] = rng.standard_normal((outputs, inputs), dtype=np.float32)
        tensors[f"{layer}.bias"] = rng.standard_normal(outputs, dtype=np.float32)
    save_file(tensors, path)
