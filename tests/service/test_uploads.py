"""What an upload costs: the memory of the service while gigabytes pass through it."""

import json
import os
from pathlib import Path

import pytest

MIB = 1024**2
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n',
    b"\r\n--b--\r\n",
)


def peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def sized_model(nbytes: int, pattern: bytes):
    header = json.dumps({"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}})
    yield len(header).to_bytes(8, "little") + header.encode()
    for _ in range(nbytes // len(pattern)):
        yield pattern


@pytest.mark.parametrize(
    "size_mib", [300, pytest.param(2048, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("shape", ["raw", "multipart"])
def test_memory_stays_flat_over_a_big_upload(live, http, shape, size_mib):
    pattern = os.urandom(MIB)
    pieces = list(sized_model(size_mib * MIB, pattern)) if size_mib < 1000 else None
    source = pieces or sized_model(size_mib * MIB, pattern)
    head, tail = FORM if shape == "multipart" else (b"", b"")
    kind = "multipart/form-data; boundary=b" if shape == "multipart" else "application/octet-stream"

    def body():
        yield head
        yield from source
        yield tail

    answer = http.post("/models", content=body(), headers={"Content-Type": kind}, timeout=600)

    assert answer.status_code == 201, answer.text
    assert answer.json()["parameters"] == size_mib * MIB
    assert peak_rss(live.worker_pid()) < 150 * MIB
