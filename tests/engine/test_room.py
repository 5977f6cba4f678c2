import shutil

import pytest

from engine.room import require_room
from jobs.problems import Problem


def test_what_the_disk_can_hold_may_begin_and_a_little_more_may_not(tmp_path):
    wanted = 2 * shutil.disk_usage(tmp_path).total
    with pytest.raises(Problem) as caught:
        require_room(tmp_path, wanted)
    most = caught.value.extra["free_bytes"] - (caught.value.extra["needed_bytes"] - wanted)
    # Others use the disk as well.
    margin = most // 10

    require_room(tmp_path, most - margin)

    with pytest.raises(Problem, match="storage_full"):
        require_room(tmp_path, most + margin)
    assert list(tmp_path.iterdir()) == []


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
