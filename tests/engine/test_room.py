import shutil

import pytest

from engine.room import require_room
from jobs.problems import Problem


def test_what_the_disk_can_hold_may_begin(tmp_path):
    require_room(tmp_path, shutil.disk_usage(tmp_path).free // 2)


def test_what_the_disk_cannot_hold_is_refused_with_both_figures(tmp_path):
    wanted = 2 * shutil.disk_usage(tmp_path).total

    with pytest.raises(Problem) as caught:
        require_room(tmp_path, wanted)

    assert caught.value.code == "storage_full"
    assert caught.value.extra["needed_bytes"] >= wanted
    assert str(caught.value.extra["free_bytes"]) in caught.value.detail


def test_what_is_there_already_is_not_needed_again(tmp_path):
    (tmp_path / "part").write_bytes(bytes(2**20))
    wanted = 2 * shutil.disk_usage(tmp_path).total

    with pytest.raises(Problem) as caught:
        require_room(tmp_path, wanted)

    assert wanted < caught.value.extra["needed_bytes"] <= wanted + 3 * 2**20
