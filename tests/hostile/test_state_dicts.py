"""torch.save files that lie, or that would run code if they were unpickled."""

import io
import os
import pickle
import pickletools
import zipfile

import pytest
import torch

from service.pickle_data import _INSTRUCTIONS


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value=None):
    """What torch.save writes, as entries."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(16.0)} if value is None else value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_pickle(raw, **others):
    return zipped({"archive/data.pkl": raw, "archive/version": b"3\n", **others})


def changed(old, new, *, entry="archive/data.pkl"):
    entries = saved()
    assert old in entries[entry]
    entries[entry] = entries[entry].replace(old, new, 1)
    return zipped(entries)


def without(name):
    entries = saved()
    del entries[name]
    return zipped(entries)


MARKED = "/tmp/modelpress-was-here"
TRAPS = {
    "os.system": Calls(os.system, f"touch {MARKED}"),
    "eval": Calls(eval, "1"),
    "exec": Calls(exec, f"open({MARKED!r}, 'w')"),
    "getattr": Calls(getattr, "", "upper"),
    "__import__": Calls(__import__, "os"),
    "open": Calls(open, MARKED, "w"),
    "subprocess": Calls(__import__("subprocess").Popen, ["touch", MARKED]),
    "torch.load": Calls(torch.load, "x"),
    "torch.hub": Calls(torch.hub.load, "x", "y"),
    "pickle.loads": Calls(pickle.loads, b"N."),
    "runpy": Calls(__import__("runpy").run_path, "x"),
    "webbrowser": Calls(__import__("webbrowser").open, "x"),
}
CASES = {
    **{
        f"{name} as protocol {protocol}": (
            with_pickle(pickle.dumps({"weight": trap}, protocol)),
            "unsupported_format",
        )
        for name, trap in TRAPS.items()
        for protocol in (2, 4)
    },
    "a trap as a key": (with_pickle(pickle.dumps({TRAPS["eval"]: 1}, 2)), "unsupported_format"),
    "a trap in a tuple": (with_pickle(pickle.dumps((TRAPS["eval"],), 2)), "unsupported_format"),
    "a class to make": (with_pickle(b"\x80\x02cargparse\nNamespace\n)\x81."), "unsupported_format"),
    "INST": (with_pickle(b"(S'ls'\nios\nsystem\n."), "unsupported_format"),
    "OBJ": (with_pickle(b"(cos\nsystem\nS'ls'\no."), "unsupported_format"),
    "an extension": (with_pickle(b"\x80\x02\x82\x01."), "unsupported_format"),
    "a persistent id in text": (with_pickle(b"\x80\x02Pstorage\n."), "unsupported_format"),
    "a name on the stack": (
        with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R."),
        "unsupported_format",
    ),
    "a name that is no text": (with_pickle(b"\x80\x04K\x01K\x02\x93."), "invalid_checkpoint"),
    "a key that is a tuple without end": (
        with_pickle(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."), "invalid_checkpoint",
    ),
    "a key that doubles": (
        with_pickle(b"\x80\x02})" + b"\x94h\x00h\x00\x86" * 40 + b"K\x01s."),
        "invalid_checkpoint",
    ),
    "a name that doubles": (
        with_pickle(b"\x80\x04)" + b"\x94h\x00h\x00\x86" * 40 + b"\x8c\x01a\x93."),
        "invalid_checkpoint",
    ),
    "dicts without end": (with_pickle(b"\x80\x02" + b"}" * 4_000_000), "invalid_checkpoint"),
    "a size of many dimensions": (
        with_pickle(b"\x80\x02ctorch\nSize\n(" + b"K\x01" * 100_000 + b"l\x85R."),
        "invalid_checkpoint",
    ),
    "a number that is a book": (
        with_pickle(b"\x80\x02F" + b"x" * 2_000_000 + b"\n."), "invalid_checkpoint",
    ),
    "a dict that holds itself": (
        with_pickle(b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s."), "unsupported_format",
    ),
    "a view that is to be negated": (
        zipped(saved({"a": torch._neg_view(torch.ones(2))})), "invalid_checkpoint",
    ),
    "a view that is to be conjugated": (
        zipped(saved({"a": torch.ones(2, dtype=torch.complex64).conj()})), "invalid_checkpoint",
    ),
    "an empty pickle": (with_pickle(b""), "invalid_checkpoint"),
    "a pickle without end": (with_pickle(b"\x80\x02}"), "invalid_checkpoint"),
    "a pickle cut off": (with_pickle(pickle.dumps({"a": "b" * 99}, 2)[:40]), "invalid_checkpoint"),
    "an empty stack": (with_pickle(b"\x80\x02R."), "invalid_checkpoint"),
    "nothing to give": (with_pickle(b"\x80\x02."), "invalid_checkpoint"),
    "a mark that is missing": (with_pickle(b"\x80\x02}u."), "invalid_checkpoint"),
    "a memory that is missing": (with_pickle(b"\x80\x02h\x05."), "invalid_checkpoint"),
    "an odd number of items": (with_pickle(b"\x80\x02}(K\x01u."), "invalid_checkpoint"),
    "items in a list": (with_pickle(b"\x80\x02](K\x01K\x02u."), "invalid_checkpoint"),
    "a key that cannot be one": (with_pickle(b"\x80\x02}]K\x01s."), "invalid_checkpoint"),
    "a number that is called": (with_pickle(b"\x80\x02K\x01)R."), "invalid_checkpoint"),
    "a tensor of numbers": (
        with_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR."),
        "invalid_checkpoint",
    ),
    "a storage of no type": (
        with_pickle(b"\x80\x02(X\x07\x00\x00\x00storageK\x01X\x01\x00\x00\x000NK\x01tQ."),
        "invalid_checkpoint",
    ),
    "an unknown storage": (
        changed(b"FloatStorage", b"QuantStorage"), "unsupported_format",
    ),
    "a storage that is not there": (without("archive/data/0"), "invalid_checkpoint"),
    "a storage that is too short": (
        zipped({**saved(), "archive/data/0": bytes(63)}), "tensor_out_of_bounds",
    ),
    "a shape that is too large": (changed(b"K\x10\x85", b"K\x11\x85"), "tensor_out_of_bounds"),
    "a shape below zero": (
        changed(b"K\x10\x85", b"J\xff\xff\xff\xff\x85"), "invalid_checkpoint",
    ),
    "a shape beyond all memory": (
        changed(b"K\x10\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "too_large",
    ),
    "strides that overlap": (changed(b"K\x01\x85", b"K\x00\x85"), "invalid_checkpoint"),
    "a storage that leads elsewhere": (
        changed(b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../0"), "invalid_checkpoint",
    ),
    "compressed storages": (zipped(saved(), zipfile.ZIP_DEFLATED), "invalid_checkpoint"),
    "numbers of another order": (
        zipped({**saved(), "archive/byteorder": b"big"}), "unsupported_format",
    ),
    "a tensor's name that is no text": (
        with_pickle(saved({1: torch.ones(2)})["archive/data.pkl"]), "invalid_checkpoint",
    ),
    "a name of control characters": (
        zipped(saved({"a\x00b": torch.ones(2)})), "invalid_tensor",
    ),
    "a name without end": (zipped(saved({"a" * 2000: torch.ones(2)})), "invalid_tensor"),
    "a thousand dimensions": (
        zipped(saved({"a": torch.ones([1] * 60)})), "invalid_tensor",
    ),
    "a module": (zipped(saved(torch.nn.Linear(2, 2))), "unsupported_format"),
    "a sparse tensor": (zipped(saved({"a": torch.eye(3).to_sparse()})), "unsupported_format"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code"), CASES.values(), ids=CASES.keys())
def test_a_state_dict_that_lies_is_refused_and_nothing_in_it_is_called(client, kept, body, code):
    before = kept()

    answer = client.post("/models", data=io.BytesIO(body))

    assert answer.json["code"] == code, answer.json
    assert answer.status_code in (413, 415, 422)
    assert kept() == before
    assert not os.path.exists(MARKED)


def test_every_instruction_of_a_state_dict_is_known():
    raw = saved(torch.nn.Linear(3, 2).state_dict())["archive/data.pkl"]

    used = {opcode.name for opcode, _, _ in pickletools.genops(raw)}
    assert {"GLOBAL", "REDUCE", "BINPERSID"} <= used <= {*_INSTRUCTIONS, "STOP"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_pickle_that_is_compressed_in_an_odd_way_is_refused(client, method):
    body = bytearray(zipped(saved(), method))

    answer = client.post("/models", data=bytes(body))

    assert (answer.status_code, answer.json["code"]) == (422, "unsafe_archive"), answer.json


def test_what_is_said_of_names_that_are_left_out_is_short(client):
    values = {"weight": torch.ones(2)} | {f"{i}" + "x" * 10_000: i for i in range(300)}

    answer = client.post("/models", data=zipped(saved(values)))

    assert answer.status_code == 201
    assert len(answer.data) < 20_000
