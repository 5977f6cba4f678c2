"""Files of other kinds, some of which run code when they are opened."""

import io
import os
import pickle
import struct
import zipfile

import pytest


class Trap:
    def __reduce__(self):
        return (os.system, ("touch /tmp/modelpress-was-here",))


def torch_zip(*extra):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
        archive.writestr("archive/data/0", bytes(64))
        for name in extra:
            archive.writestr(f"archive/{name}", b"x")
    return buffer.getvalue()


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


CASES = {
    "a pickle of protocol 2": (pickle.dumps(Trap(), 2), "pickle"),
    "a pickle of protocol 4": (pickle.dumps(Trap(), 4), "pickle"),
    "a pickle of protocol 5": (pickle.dumps(Trap(), 5), "pickle"),
    "a legacy torch.save": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(600), "pickle"),
    "a pickle in text": (pickle.dumps(Trap(), 0), "no format"),
    "a torch.save of no state dict": (torch_zip(), "posix.system"),
    "TorchScript": (torch_zip("constants.pkl", "code/__torch__.py"), "TorchScript"),
    "an old torch.export": (zip_of("serialized_exported_program.json", "version"), "torch.export"),
    "npz": (zip_of("a.npy", "b.npy"), "npz"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 123, 5) + bytes(100), "GGUF"),
    "GGUF with tensors past its end": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63), "GGUF"),
    "GGML": (b"lmgg" + bytes(100), "GGML"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0:" + bytes(600), "ONNX"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(100), "NumPy"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
    "bzip2": (b"BZh91AY&SY" + bytes(100), "bzip2"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(100), "RAR"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    ),
    "text": (b"hello", "no format"),
    "one byte": (b"\x00", "no format"),
    "zeros": (bytes(4096), "no format"),
    "an ELF program": (b"\x7fELF\x02\x01\x01" + bytes(600), "no format"),
    "noise": (b"\x9d\x1c" * 5000, "no format"),
}


@pytest.mark.parametrize(("body", "named"), CASES.values(), ids=CASES.keys())
def test_another_format_is_refused_with_advice_and_never_opened(client, kept, body, named):
    before = kept()

    answer = client.post("/models", data=io.BytesIO(body))

    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_format"), answer.json
    assert named in answer.json["detail"]
    assert kept() == before
    assert not os.path.exists("/tmp/modelpress-was-here")


def test_nothing_is_no_model(client, kept):
    before = kept()

    answer = client.post("/models", data=b"")

    assert (answer.status_code, answer.json["code"]) == (422, "empty_upload")
    assert kept() == before
