import errno
import os

import numpy as np
import pytest

from engine.outputs import Outputs
from jobs.problems import Problem


def open_files(folder):
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [path for name in names if (path := _target(name)).startswith(str(folder))]


def _target(name):
    try:
        return os.readlink(name)
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("writes_back", [True, False])
def test_a_file_is_closed_when_its_last_holder_has_let_go(tmp_path, writes_back):
    with Outputs(tmp_path, is_resumed=False, writes_back=writes_back) as outputs:
        output = outputs.create("a", 8)
        output.hold()
        output.write(np.arange(4, dtype=np.uint8), 4)
        output.let_go()
        assert open_files(tmp_path)
        output.let_go()
        if outputs._disk is not None:
            outputs._disk.shutdown(wait=True)
        assert not open_files(tmp_path)

    assert (tmp_path / "a").read_bytes() == bytes([0, 0, 0, 0, 0, 1, 2, 3])


def test_files_are_closed_when_the_work_on_them_failed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        _fail(tmp_path)

    assert not open_files(tmp_path)


def _fail(folder):
    with Outputs(folder, is_resumed=False, writes_back=True) as outputs:
        outputs.create("a", 8)
        raise ZeroDivisionError


def test_a_file_that_is_there_is_only_gone_on_with_after_a_kill(tmp_path):
    (tmp_path / "a").write_bytes(b"before")

    outputs = Outputs(tmp_path, is_resumed=False, writes_back=False)
    with outputs, pytest.raises(FileExistsError):
        outputs.create("a", 8)

    with Outputs(tmp_path, is_resumed=True, writes_back=False) as outputs:
        outputs.create("a", 8).write(np.frombuffer(b"!", np.uint8), 6)
    assert (tmp_path / "a").read_bytes() == b"before!\0"


def test_a_file_for_which_there_is_no_room_is_refused_and_takes_none(tmp_path, monkeypatch):
    allocate = os.posix_fallocate

    def find_half(file, start, nbytes):
        # As ext4 does, which keeps what it found.
        allocate(file, start, nbytes // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", find_half)
    outputs = Outputs(tmp_path, is_resumed=False, writes_back=False)
    with outputs, pytest.raises(Problem, match="of a") as caught:
        outputs.create("a", 2**20)

    assert caught.value.code == "storage_full"
    assert (tmp_path / "a").stat().st_blocks == 0
    assert not open_files(tmp_path)
