import os
import resource
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from training import checkpoints as module
from training.checkpoints import Checkpoints, Record

LOSSES = [(1, 2.5, 0.1, 1000), (2, 1.5, 0.05, 1001)]


def tensors(value):
    return {
        "weight/a": torch.full((3, 2), value),
        "state/a/step": torch.tensor(value),
        "state/a/codes": torch.full((7,), int(value), dtype=torch.uint8),
        "weight/empty": torch.zeros(0),
    }


def record(steps, job="job"):
    return Record(job, steps, 4, ["adamw8bit"], losses=list(LOSSES), looks=[(1, 2.0)], best=1)


def test_what_was_written_is_found_and_read_into_the_tensors_that_are_there(tmp_path):
    for steps, value in ((1, 1.0), (2, 2.0)):
        written = Checkpoints(tmp_path / "c", "job")
        written.find()
        written.write(record(steps), tensors(value))
    found = Checkpoints(tmp_path / "c", "job")

    assert found.find() == record(2)
    held = tensors(0.0)
    found.read(held)
    for name, expected in tensors(2.0).items():
        assert torch.equal(held[name], expected)
    # Of two checkpoints the older one is gone.
    assert sorted(os.listdir(tmp_path / "c")) == ["training-2.safetensors", "training.json"]
    found.remove()
    assert not (tmp_path / "c").exists()


def test_another_jobs_or_another_boots_counts_for_nothing(tmp_path, monkeypatch):
    Checkpoints(tmp_path, "job").write(record(1), tensors(1.0))

    assert Checkpoints(tmp_path, "other").find() is None
    assert Checkpoints(tmp_path / "elsewhere", "job").find() is None
    Checkpoints(tmp_path, "job").write(record(1), tensors(1.0))
    boot = tmp_path.with_name("boot_id")
    boot.write_text("another\n")
    monkeypatch.setattr(module, "_BOOT_ID", boot)
    assert Checkpoints(tmp_path, "job").find() is None


def test_one_that_was_cut_off_while_it_was_written_is_not_there(tmp_path):
    Checkpoints(tmp_path, "job").write(record(1), tensors(1.0))
    (tmp_path / "training-2.safetensors").write_bytes(b"half")
    (tmp_path / "training.json.part").write_text("{")

    found = Checkpoints(tmp_path, "job")
    assert found.find() == record(1)
    # Nobody would overwrite it: the next attempt writes at other steps.
    assert sorted(os.listdir(tmp_path)) == ["training-1.safetensors", "training.json"]
    found.remove()
    assert not tmp_path.exists()


def test_a_disk_with_room_for_tensors_and_not_for_what_tells_of_them_leaves_the_last_one(tmp_path):
    kept = Checkpoints(tmp_path, "job")
    kept.write(record(1), tensors(1.0))
    long = replace(record(2), losses=[(1, 1.0, 1e-4, 10**6)] * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        kept.write(long, tensors(2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert sorted(os.listdir(tmp_path)) == ["training-1.safetensors", "training.json"]
    assert Checkpoints(tmp_path, "job").find() == record(1)


def test_a_disk_without_room_ends_the_checkpoints_and_leaves_the_last_one(tmp_path):
    kept = Checkpoints(tmp_path, "job")
    kept.write(record(1), tensors(1.0))
    large = {"weight/a": torch.zeros(10_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        kept.write(record(2), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept.write(record(3), large)

    assert sorted(os.listdir(tmp_path)) == ["training-1.safetensors", "training.json"]
    assert Checkpoints(tmp_path, "job").find() == record(1)


def test_the_best_weights_are_kept_apart(tmp_path):
    kept = Checkpoints(tmp_path, "job")
    kept.write_best(tensors(3.0))
    kept.write(record(5), tensors(5.0))

    held = tensors(0.0)
    kept.read_best(held)

    assert torch.equal(held["weight/a"], tensors(3.0)["weight/a"])


@pytest.mark.parametrize("text", ["", "[", '{"boot": 1}'])
def test_a_damaged_record_counts_for_nothing(tmp_path, text):
    (tmp_path / "training.json").write_text(text)

    assert Checkpoints(tmp_path, "job").find() is None


def test_losses_of_many_steps_are_evenly_spread_the_last_among_them_and_few():
    record = Record("job")
    for step in range(1, 60_001):
        record.steps_done = step
        record.add_loss(1 / step, 0.1, step)
        if step in (1, 2, 4095, 4096, 4097, 4098, 8192, 8193, 59_999, 60_000):
            numbers = [number for number, *_ in record.losses]
            assert (numbers[0], numbers[-1]) == (1, step)
            assert min(step, 2000) <= len(numbers) <= 4097
            assert len({b - a for a, b in pairwise(numbers[:-1])}) <= 1
    assert record.losses[7] == (1 + 7 * 16, 1 / (1 + 7 * 16), 0.1, 1 + 7 * 16)


def test_what_is_read_back_takes_no_copy_of_a_tensor(tmp_path, largest_tensor):
    kept = Checkpoints(tmp_path, "job")
    kept.write(record(1), {"weight": torch.arange(1000.0).reshape(10, 100)})
    held = {"weight": torch.zeros(10, 100)}

    with largest_tensor:
        kept.read(held)

    assert torch.equal(held["weight"], torch.arange(1000.0).reshape(10, 100))
    assert largest_tensor.nbytes == 0
