import io
import os
import tarfile
from pathlib import Path

import blake3
import pytest

from modelpress.errors import UnusableUpload
from modelpress.packages import package_file, package_model

SENT = ["LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.model"]


def packed(path: Path) -> bytes:
    return b"".join(package_model(path).chunks())


def test_a_folder_becomes_the_tar_that_tarfile_makes(model_folder):
    reference = io.BytesIO()
    with tarfile.open(fileobj=reference, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in SENT:
            content = (model_folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

    assert packed(model_folder) == reference.getvalue()


def test_a_folder_is_packed_without_code_pickles_and_hidden_files(model_folder):
    with tarfile.open(fileobj=io.BytesIO(packed(model_folder))) as tar:
        names = tar.getnames()

    assert names == SENT


def test_a_folder_without_safetensors_is_packed_with_its_state_dicts_alone(model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").unlink()
    for name in ("pytorch_model-00001-of-00002.bin", "training_args.bin", "optimizer.pt"):
        (model_folder / name).write_bytes(b"PK")

    with tarfile.open(fileobj=io.BytesIO(packed(model_folder))) as tar:
        names = tar.getnames()

    kept = [name for name in SENT if name != "model.safetensors"]
    assert names == sorted([*kept, "pytorch_model-00001-of-00002.bin"])


def test_owner_time_and_permissions_do_not_change_the_digest(model_folder):
    before = package_model(model_folder).digest()

    os.utime(model_folder / "config.json", (1, 1))
    (model_folder / "config.json").chmod(0o600)

    assert package_model(model_folder).digest() == before


def test_a_link_is_packed_as_the_file_it_leads_to(model_folder, tmp_path):
    before = packed(model_folder)
    (model_folder / "config.json").rename(tmp_path / "blob")

    (model_folder / "config.json").symlink_to(tmp_path / "blob")

    assert packed(model_folder) == before


def test_the_announced_size_and_digest_are_those_of_the_bytes(model_folder):
    package = package_model(model_folder)

    content = b"".join(package.chunks())

    assert package.nbytes == len(content)
    assert package.digest() == blake3.blake3(content).hexdigest()


def test_a_long_or_foreign_name_survives_the_tar(model_folder):
    name = "ü" * 60 + ".json"
    (model_folder / name).write_text("{}")

    with tarfile.open(fileobj=io.BytesIO(packed(model_folder))) as tar:
        names = tar.getnames()

    assert name in names


def test_a_file_is_sent_as_it_is(model_file):
    assert packed(model_file) == model_file.read_bytes()


def test_a_folder_without_safetensors_is_refused_with_the_way_to_convert(model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").unlink()

    with pytest.raises(UnusableUpload, match=r"no \.safetensors file.*save_file"):
        package_model(model_folder)


def test_a_path_to_nothing_is_refused(tmp_path):
    with pytest.raises(UnusableUpload, match="does not exist"):
        package_model(tmp_path / "absent")


def test_a_folder_is_no_data_set(tmp_path):
    with pytest.raises(UnusableUpload, match="is no file"):
        package_file(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()

    with pytest.raises(UnusableUpload, match="is empty"):
        package_file(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"{}longer than before"], ids=["shorter", "longer"])
def test_a_file_that_changes_its_size_while_it_is_read_is_noticed(model_folder, content):
    package = package_model(model_folder)
    (model_folder / "config.json").write_bytes(content)

    with pytest.raises(UnusableUpload, match=r"config\.json changed its size"):
        package.digest()
