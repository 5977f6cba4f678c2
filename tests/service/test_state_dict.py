"""State dicts of torch.save against what torch itself loads from them."""

import io
import json
import tarfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save

from jobs.problems import Problem
from service.state_dict import convert, is_torch_save
from service.zip_archive import open_zip

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64,
]  # fmt: skip


@pytest.fixture
def convert_saved(tmp_path):
    """Save something by torch, convert it, and give what is left out and what safetensors reads."""

    def act(value, max_bytes=2**30, **options):
        path, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
        torch.save(value, path, **options)
        with open_zip(path) as archive:
            assert is_torch_save(archive)
            ignored = convert(archive, path, target, max_bytes)
        return ignored, load_file(target)

    return act


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*raw), name


def test_every_dtype_has_the_bytes_that_torch_saved(convert_saved):
    values = {str(dtype): (torch.arange(24) % 2).to(dtype).reshape(2, 3, 4) for dtype in DTYPES}

    ignored, found = convert_saved(values)

    assert ignored == []
    assert_equal(found, values)


def test_the_state_of_a_module_comes_over_with_its_parameters_and_buffers(convert_saved):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))

    _, found = convert_saved(module.state_dict())

    assert_equal(found, module.state_dict())


def test_parameters_count_as_tensors(convert_saved):
    values = dict(torch.nn.Linear(4, 3).named_parameters())

    _, found = convert_saved(values)

    assert_equal(found, values)


def test_tensors_that_share_their_bytes_each_get_their_own(convert_saved):
    whole = torch.arange(12.0).reshape(3, 4)
    values = {"a": whole, "again": whole, "row": whole[1], "rest": whole[1:], "none": whole[3:]}

    _, found = convert_saved(values)

    assert_equal(found, values)


def test_scalars_and_dimensions_of_one_come_over_whatever_their_strides(convert_saved):
    values = {"scalar": torch.tensor(2.5), "ones": torch.ones(1, 5, 1).transpose(0, 2)}

    _, found = convert_saved(values)

    assert_equal(found, values)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_inside_of_a_training_checkpoint_is_found(convert_saved, wrapper):
    values = OrderedDict(weight=torch.ones(2, 2), extra="kept by nobody")
    checkpoint = {"epoch": 3, "lr": [1e-3], "done": True, wrapper: values, "none": None}

    ignored, found = convert_saved(checkpoint)

    assert_equal(found, {"weight": values["weight"]})
    assert ignored == ["epoch", "lr", "done", "none", f"{wrapper}.extra"]


def test_tensors_that_a_training_loop_keeps_beside_the_state_dict_are_left_out(convert_saved):
    checkpoint = {"best_accuracy": torch.tensor(0.7), "state_dict": {"weight": torch.ones(2)}}

    ignored, found = convert_saved(checkpoint)

    assert_equal(found, checkpoint["state_dict"])
    assert ignored == ["best_accuracy"]


def test_the_wrapper_that_holds_tensors_is_taken(convert_saved):
    checkpoint = {"state_dict": {"step": 1}, "model": {"weight": torch.ones(2)}}

    ignored, found = convert_saved(checkpoint)

    assert_equal(found, checkpoint["model"])
    assert ignored == ["state_dict"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(convert_saved, protocol):
    values = {"weight": torch.arange(6.0)}

    _, found = convert_saved(values, pickle_protocol=protocol)

    assert_equal(found, values)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=32, exclude_categories=["C", "Z"]), min_size=1),
        arrays("float32", st.tuples(st.integers(0, 5), st.integers(0, 5))),
        min_size=1,
        max_size=5,
    )
)
def test_any_names_and_shapes_come_over(tmp_path_factory, arrays_by_name):
    folder = tmp_path_factory.mktemp("any")
    values = {name: torch.from_numpy(array.copy()) for name, array in arrays_by_name.items()}
    torch.save(values, folder / "model.pt")

    with open_zip(folder / "model.pt") as archive:
        convert(archive, folder / "model.pt", folder / "model.safetensors", 2**20)

    assert_equal(load_file(folder / "model.safetensors"), values)


def test_a_transposed_tensor_is_refused_by_name_with_what_to_do(convert_saved):
    with pytest.raises(Problem, match=r"'turned' .*\.contiguous\(\)") as raised:
        convert_saved({"turned": torch.ones(2, 3).T})

    assert raised.value.code == "invalid_checkpoint"


def test_a_whole_module_is_refused(convert_saved):
    with pytest.raises(Problem, match=r"torch.nn.modules.linear.Linear") as raised:
        convert_saved(torch.nn.Linear(2, 2))

    assert raised.value.code == "unsupported_format"


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], {"epoch": 3}, {}])
def test_what_is_no_state_dict_is_refused(convert_saved, value):
    with pytest.raises(Problem, match=r"torch.save\(model.state_dict\(\)") as raised:
        convert_saved(value)

    assert raised.value.code == "unsupported_format"


def test_more_bytes_than_are_allowed_are_refused(convert_saved):
    with pytest.raises(Problem, match="4000 bytes; 3999 are allowed") as raised:
        convert_saved({"weight": torch.ones(1000)}, max_bytes=3999)

    assert raised.value.code == "too_large"


def test_a_few_bytes_that_many_tensors_share_do_not_fill_the_disk(convert_saved):
    whole = torch.ones(2**20)

    with pytest.raises(Problem, match="too many share theirs") as raised:
        convert_saved({f"copy {i}": whole for i in range(40)})

    assert raised.value.code == "unsafe_archive"


def test_an_upload_becomes_a_model_like_any_other(client):
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": {"fc.weight": torch.ones(4, 4)}}, buffer)

    answer = client.post("/models", data=buffer.getvalue())

    assert answer.status_code == 201, answer.json
    assert answer.json["format"] == "safetensors"
    assert answer.json["tensors"] == 1
    assert answer.json["ignored_files"] == ["epoch"]


def tarred(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def stored_tensors(blobs, answer):
    folder = blobs.files("models", answer.json["id"].removeprefix("mdl_"))
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found, sorted(path.name for path in folder.iterdir())


def test_a_folder_with_an_older_weights_file_becomes_one_with_safetensors(client, blobs):
    values = {"fc.weight": torch.ones(4, 4), "fc.bias": torch.zeros(4)}
    body = tarred(
        config__json=b'{"a": 1}',
        pytorch_model__bin=saved(values),
        training_args__bin=b"\x80\x02.",
        optimizer__pt=saved({"step": 1}),
    )

    answer = client.post("/models", data=body)

    assert answer.status_code == 201, answer.json
    found, names = stored_tensors(blobs, answer)
    assert_equal(found, values)
    assert names == ["config.json", "model.safetensors"]
    assert answer.json["ignored_files"] == ["optimizer.pt", "training_args.bin"]


def test_shards_and_their_index_keep_their_places(client, blobs):
    first, second = {"a": torch.ones(3)}, {"b": torch.zeros(2, 2), "c": torch.ones(1)}
    weight_map = {"a": "pytorch_model-00001-of-00002.bin"} | dict.fromkeys(
        "bc", "pytorch_model-00002-of-00002.bin"
    )
    body = tarred(
        **{
            "pytorch_model-00001-of-00002.bin": saved(first),
            "pytorch_model-00002-of-00002.bin": saved(second),
            "pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode(),
        }
    )

    answer = client.post("/models", data=body)

    assert answer.status_code == 201, answer.json
    found, names = stored_tensors(blobs, answer)
    assert_equal(found, first | second)
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_where_there_are_safetensors_the_state_dicts_are_left_out(client, blobs):
    weights = save({"fc.weight": torch.ones(2, 2)})
    body = tarred(**{"model.safetensors": weights, "pytorch_model.bin": b"whatever it is"})

    answer = client.post("/models", data=body)

    assert answer.status_code == 201, answer.json
    assert answer.json["ignored_files"] == ["pytorch_model.bin"]
    assert stored_tensors(blobs, answer)[1] == ["model.safetensors"]


def test_a_folder_that_is_empty_without_its_state_dicts_is_no_trouble(client, blobs):
    weights = save({"fc.weight": torch.ones(2, 2)})
    body = tarred(**{"a/model.safetensors": weights, "b/optimizer.bin": b"whatever it is"})

    answer = client.post("/models", data=body)

    assert answer.status_code == 201, answer.json
    assert stored_tensors(blobs, answer)[1] == ["model.safetensors"]


@pytest.mark.parametrize("file", ["", ".", "..", "../x", "model.safetensors"])
def test_an_index_that_names_no_shards_is_refused(client, file):
    body = tarred(
        **{
            "pytorch_model-00001-of-00002.bin": saved({"a": torch.ones(3)}),
            "pytorch_model-00002-of-00002.bin": saved({"b": torch.ones(3)}),
            "pytorch_model.bin.index.json": json.dumps({"weight_map": {"a": file}}).encode(),
        }
    )

    answer = client.post("/models", data=body)

    assert (answer.status_code, answer.json["code"]) == (422, "invalid_checkpoint")


@pytest.mark.parametrize(
    "name", ["model.safetensors/x.json", "pytorch_model.bin/model.safetensors"]
)
def test_a_folder_with_the_name_of_a_file_is_refused(client, name):
    answer = client.post("/models", data=tarred(**{name: b"{}"}))

    assert (answer.status_code, answer.json["code"]) == (422, "unsafe_archive")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.pt": b"PK\x03\x04", "b.pt": b"PK"}, "several state dicts (a.pt, b.pt)"),
        ({"pytorch_model.bin": b"\x80\x02."}, "pytorch_model.bin, which is no state dict"),
    ],
)
def test_state_dicts_in_an_archive_that_make_no_model_are_refused(client, files, said):
    answer = client.post("/models", data=tarred(**files))

    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_format")
    assert said in answer.json["detail"]
