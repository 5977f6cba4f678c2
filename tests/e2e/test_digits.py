"""A small network trained on scikit-learn's digits, exported, and made smaller over HTTP."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from modelpress import Client

pytestmark = pytest.mark.slow

#: Run where only torch and what torch itself needs can be imported.
PLAIN_TORCH = """
import json, sys
NEEDED = {"torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
          "filelock", "fsspec", "typing_extensions", "setuptools", "_distutils_hack"}
class OnlyTorch:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        # The last is the interpreter's own, under a name of the machine's.
        is_own = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if is_own or top in NEEDED else None
sys.meta_path[:] = [OnlyTorch(finder) for finder in sys.meta_path]
import warnings
warnings.simplefilter("ignore")
import torch
program = torch.export.load(sys.argv[1]).module()
images = torch.frombuffer(bytearray(open(sys.argv[2], "rb").read()), dtype=torch.float32)
images = images.reshape(-1, 1, 8, 8)
with torch.inference_mode():
    # One row, seven and all: the batch has stayed dynamic.
    one, seven, every = program(images[:1]), program(images[:7]), program(images)
assert one.shape == (1, 10) and seven.shape == (7, 10)
assert torch.allclose(every[:7], seven, atol=1e-4)
assert not {"jobs", "programs", "numpy", "safetensors", "transformers"} & set(sys.modules)
print(json.dumps(every.argmax(1).tolist()))
"""


class Digits(nn.Module):
    """Convolutions with BatchNorm, one of them inside of a residual."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.third = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.third_norm = nn.BatchNorm2d(2 * width)
        self.last = nn.Linear(2 * width * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first_norm(self.first(image)))
        x = torch.relu(x + self.second_norm(self.second(x)))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.third_norm(self.third(x)))
        return self.last(nn.functional.max_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def digits():
    """1,797 images of 8 by 8, and what they show: those to learn from, and those to be asked."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16 - 0.5, dtype=torch.float32).reshape(-1, 1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(labels)[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    (images, labels), (asked, right) = digits
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        accuracy = float((model(asked).argmax(1) == right).float().mean())
    assert accuracy >= 0.97
    return model, accuracy


@pytest.fixture(scope="module")
def program(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "digits.pt2"
    rows = torch.export.Dim("rows", min=1, max=4096)
    exported = torch.export.export(
        trained[0], (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: rows},)
    )
    torch.export.save(exported, path)
    return path


@pytest.fixture(scope="module")
def client(stack):
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def dataset_id(client, digits, tmp_path_factory):
    asked, right = digits[1]
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, image=asked.numpy(), labels=right.numpy())
    return client.upload_dataset(path).id


@pytest.fixture(scope="module")
def lessons_id(client, digits, tmp_path_factory):
    images, labels = digits[0]
    path = tmp_path_factory.mktemp("data") / "lessons.npz"
    np.savez(path, image=images.numpy(), labels=labels.numpy())
    return client.upload_dataset(path).id


@pytest.fixture(scope="module")
def compress(client, program, dataset_id, tmp_path_factory):
    """Give a function that runs a recipe, and gives the artifact's path and the report."""
    model = client.upload_model(program)
    assert model.raw["format"] == "pt2"

    def run(*steps):
        recipe = {"steps": list(steps), "evaluate": {"dataset": dataset_id, "rows": 1000}}
        planned = client.plan(model.id, recipe)
        job = client.submit(model.id, recipe, use_cache=False)
        client.wait(job.id, timeout=240)
        folder = tmp_path_factory.mktemp("artifact") / "out"
        client.download(job.id, folder)
        report = client.report(job.id)
        [path] = [path for path in folder.iterdir() if path.suffix == ".pt2"]
        assert path.stat().st_size == planned["artifact"]["total_bytes"]
        memory = report["memory"]
        assert memory["measured_peak_bytes"] == pytest.approx(
            memory["predicted_peak_bytes"], rel=0.25
        )
        return path, report

    return run


@pytest.fixture(scope="module")
def ask_plain_torch(digits, tmp_path_factory):
    asked, right = digits[1]
    images = tmp_path_factory.mktemp("images") / "images"
    images.write_bytes(asked.numpy().tobytes())

    def ask(path) -> float:
        done = subprocess.run(
            [sys.executable, "-I", "-c", PLAIN_TORCH, str(path), str(images)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        choices = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
        return float((choices == right).float().mean())

    return ask


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_int8_digits_are_as_right_and_open_where_only_torch_is(
    compress, ask_plain_torch, trained, program, scheme
):
    path, report = compress({"op": "quantize", "scheme": scheme})

    assert ask_plain_torch(path) >= trained[1] - 0.005
    assert path.stat().st_size < 0.42 * program.stat().st_size
    quality = report["quality"]
    assert quality["before"]["accuracy"] == pytest.approx(trained[1], abs=1e-6)
    assert quality["after"]["accuracy"] >= trained[1] - 0.005
    assert quality["agreement"]["mean_cosine"] > 0.999
    assert report["loaders"]["torch.export.load"]["ok"]
    assert report["verification"]["max_error_steps"] <= 0.5001
    changed = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert set(changed) == {"first.weight", "second.weight", "third.weight", "last.weight"}
    assert {tensor["after"]["dtype"] for tensor in changed.values()} == {"I8"}


def test_shrunk_digits_have_half_the_channels_and_open_where_only_torch_is(
    compress, ask_plain_torch, program
):
    path, report = compress({"op": "shrink", "width": 0.5})

    assert path.stat().st_size <= 0.4 * program.stat().st_size
    # Nothing was trained anew, so little is asked of it: better than a guess.
    assert ask_plain_torch(path) > 0.2
    shapes = {tensor["name"]: tensor["shape"] for tensor in report["tensors"]}
    assert shapes["first.weight"] == [24, 1, 3, 3]
    assert shapes["second.weight"] == [24, 24, 3, 3]
    assert shapes["third.weight"] == [48, 24, 3, 3]
    assert shapes["last.weight"] == [10, 192]
    assert report["quality"]["before"]["accuracy"] >= 0.97
    assert report["quality"]["after"]["accuracy"] > 0.2
    assert report["steps"][0]["op"] == "shrink"
    assert [skipped["name"] for skipped in report["skipped"]] == ["last.weight"]


@pytest.mark.timeout(300)
def test_digits_of_half_the_channels_are_as_right_once_trained_and_rounded_in_the_same_job(
    compress, ask_plain_torch, trained, program, lessons_id
):
    path, report = compress(
        {"op": "shrink", "width": 0.5},
        {"op": "finetune", "dataset": lessons_id, "epochs": 3, "batch_size": 64,
         "micro_batch_size": 32, "learning_rate": 1e-3},
        {"op": "quantize", "scheme": "w8a8"},
    )  # fmt: skip

    assert ask_plain_torch(path) >= trained[1] - 0.01
    assert path.stat().st_size < 0.3 * program.stat().st_size
    quality = report["quality"]
    assert quality["before"]["accuracy"] == pytest.approx(trained[1], abs=1e-6)
    assert quality["after"]["accuracy"] >= trained[1] - 0.01
    assert [step["op"] for step in report["steps"]] == ["shrink", "finetune", "quantize"]
    training = report["training"]
    assert training["objective"] == "classification"
    assert training["frozen_statistics"] == 3
    assert training["steps"] == 3 * 19
    assert training["losses"][-1]["loss"] < 0.5 * training["losses"][0]["loss"]
    third = next(one for one in report["tensors"] if one["name"] == "third.weight")
    assert (third["shape_before"], third["shape"]) == ([96, 48, 3, 3], [48, 24, 3, 3])
    assert third["after"]["dtype"] == "I8"
