import io

import pytest

from modelpress.meters import LineMeter, meter, show_bytes, show_job
from modelpress.values import job_from


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TerminalStream(io.StringIO):
    def isatty(self):
        return True


def test_lines_come_at_most_every_five_seconds():
    stream, clock = io.StringIO(), FakeClock()
    lines = LineMeter(stream, clock)

    for second in range(12):
        clock.now = 100.0 + second
        lines.show("upload", second, 100, f"{second} of 100")

    assert stream.getvalue() == "upload: 0 of 100\nupload: 5 of 100\nupload: 10 of 100\n"


def test_a_new_phase_and_the_end_are_told_at_once():
    stream = io.StringIO()
    lines = LineMeter(stream, FakeClock())

    lines.show("upload", 1, 2, "1 of 2")
    lines.show("upload", 2, 2, "2 of 2")
    lines.show("queued", 0, 0, "")

    assert stream.getvalue() == "upload: 1 of 2\nupload: 2 of 2\nqueued\n"


def test_the_same_line_is_not_repeated():
    stream, clock = io.StringIO(), FakeClock()
    lines = LineMeter(stream, clock)

    for _ in range(3):
        clock.now += 10
        lines.show("queued", 0, 0, "3 ahead")

    assert stream.getvalue() == "queued: 3 ahead\n"


def test_a_stream_that_is_no_terminal_gets_lines():
    stream = io.StringIO()

    with meter(stream) as shown:
        show_bytes(shown, "download")(2048, 2048)

    assert stream.getvalue() == "download: 2.00 KiB of 2.00 KiB\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = TerminalStream()

    with meter(stream) as shown:
        show_bytes(shown, "download")(1024, 2048)

    assert "download" in stream.getvalue()
    assert "━" in stream.getvalue()


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"state": "queued", "queue_position": 3}, "queued: 3 ahead"),
        ({"state": "running"}, "running"),
        ({"state": "running", "attempt": 2}, "running, attempt 2"),
        ({"state": "succeeded"}, "succeeded"),
        (
            {
                "state": "running",
                "progress": {
                    "phase": "compress",
                    "step": 2,
                    "steps": 2,
                    "done": 1024**2,
                    "total": 1024**3,
                    "unit": "bytes",
                    "eta_seconds": 130.4,
                },
            },
            "running: compress (step 2 of 2): 1.00 MiB of 1.00 GiB, 2m 10s left",
        ),
        (
            {
                "state": "running",
                "progress": {"phase": "a\x1bb", "done": 1, "total": 2, "unit": "tensors"},
            },
            "running: a\ufffdb: 1 of 2 tensors",
        ),
    ],
)
def test_a_job_is_told_in_one_line(members, line):
    stream = io.StringIO()

    show_job(LineMeter(stream), job_from({"id": "job_x", "revision": 1, **members}))

    assert stream.getvalue() == line + "\n"
