import pytest

from modelpress.errors import UnusableUpload
from modelpress.model_headers import read_headers

HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_of_a_file_the_header_alone_is_read(model_file):
    assert read_headers(model_file) == {
        "headers": {"model.safetensors": HEADER},
        "config": None,
        "files": {},
    }


def test_of_a_folder_the_headers_the_config_and_the_sizes_are_read(model_folder):
    (model_folder / "config.json").write_text('{"model_type": "llama"}')

    read = read_headers(model_folder)

    assert read["headers"] == {"model.safetensors": HEADER}
    assert read["config"] == {"model_type": "llama"}
    assert read["files"] == {
        "LICENSE": 7,
        "chat_template.jinja": 19,
        "config.json": 23,
        "tokenizer.model": 15,
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", b"", "upload it first"),
        ("a.safetensors", None, "does not exist"),
        ("a.safetensors", b"", "does not begin"),
        ("a.safetensors", b"\xff" * 20, "does not begin"),
        ("a.safetensors", b"\x02" + bytes(7) + b"{{", "does not begin"),
    ],
)
def test_what_has_no_header_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UnusableUpload, match=words):
        read_headers(path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UnusableUpload, match="neither"):
        read_headers(tmp_path)


def test_a_config_that_is_no_json_is_refused(model_folder):
    with pytest.raises(UnusableUpload, match=r"config\.json is not JSON"):
        read_headers(model_folder)
