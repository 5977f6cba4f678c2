from jobs.usage import stored_bytes


def test_a_file_with_several_names_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(2**20))
    before = stored_bytes(tmp_path)

    (tmp_path / "link").hardlink_to(tmp_path / "a" / "file")

    assert stored_bytes(tmp_path) == before
    assert 2**20 <= before < 2**20 + 2**16


def test_what_is_announced_and_not_written_does_not_count(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)

    assert stored_bytes(tmp_path) < 2**20


def test_links_are_not_followed(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_bytes(bytes(2**20))
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")

    assert stored_bytes(tmp_path / "inside") < 2**20
