"""Programs of several architectures, exported by torch and stored as the service stores them."""

import io
import tempfile
import warnings
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from service.program_upload import convert
from service.zip_archive import open_zip


class Residual(nn.Module):
    """Convolutions with BatchNorm, one of them depthwise, a residual and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 24, 3, stride=2)
        self.classes = nn.Linear(24 * 3 * 3, 5)

    def forward(self, image):
        x = torch.relu(self.stem_norm(self.stem(image)))
        x = x + self.point_norm(self.point(nn.functional.hardswish(self.depth(x))))
        return self.classes(torch.relu(self.down(x)).flatten(1))


class Pooled(nn.Module):
    """Channels that reach the head by a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 12, 3)
        self.b = nn.Conv1d(12, 8, 3)
        self.hidden = nn.Linear(8, 20)
        self.classes = nn.Linear(20, 3)

    def forward(self, sound):
        x = torch.relu(self.b(torch.relu(self.a(sound)))).mean(2)
        return self.classes(nn.functional.gelu(self.hidden(x)))


class Encoder(nn.Module):
    """A transformer's layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.classes = nn.Linear(16, 4)

    def forward(self, ids):
        return self.classes(self.layer(self.tokens(ids)).mean(1))


class Tied(nn.Module):
    """A head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 8)
        self.hidden = nn.Linear(8, 8)
        self.logits = nn.Linear(8, 30, bias=False)
        self.logits.weight = self.tokens.weight

    def forward(self, ids):
        return self.logits(torch.tanh(self.hidden(self.tokens(ids))))


MODELS = {
    "residual": (Residual, lambda rows: torch.randn(rows, 3, 8, 8)),
    "pooled": (Pooled, lambda rows: torch.randn(rows, 2, 20)),
    "encoder": (Encoder, lambda rows: torch.randint(50, (rows, 7))),
    "tied": (Tied, lambda rows: torch.randint(30, (rows, 5))),
}


def store(exported, folder: Path) -> Path:
    """Have the service write a program, and give its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(buffer.getvalue())
        file.flush()
        with open_zip(Path(file.name)) as archive:
            convert(archive, folder / "model.pt2", 2**30)
    assert zipfile.is_zipfile(folder / "model.pt2")
    return folder


def export(model, inputs, *, is_dynamic=True, decomposed=False):
    """Export a model, with rows that may vary."""
    shapes = ({0: torch.export.Dim("rows", min=1, max=512)},) if is_dynamic else None
    with warnings.catch_warnings():
        # What torch warns of in itself.
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.export.export(model, (inputs,), dynamic_shapes=shapes)
        return exported.run_decompositions() if decomposed else exported


def store_kind(folder, kind, *, dtype=torch.float32, change=None, **options):
    """Store a program of a kind, and give its folder and its model in evaluation mode."""
    torch.manual_seed(0)
    cls, inputs = MODELS[kind]
    model = cls().eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
        if change is not None:
            change(model)
    model = model.to(dtype)
    example = inputs(2)
    example = example.to(dtype) if example.is_floating_point() else example
    return store(export(model, example, **options), folder / kind), model


@pytest.fixture
def make_program(tmp_path):
    """Give a function that makes a stored program of a kind, and its model in evaluation mode."""
    return partial(store_kind, tmp_path)
