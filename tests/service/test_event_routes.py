import json

import pytest

from jobs.job import Progress
from jobs.problems import Problem


def progress(done):
    return Progress(phase="compress", step=1, steps=1, done=done, total=9, unit="bytes")


def parse(stream):
    events = []
    for block in stream.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if "event" in fields:
            events.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return events


@pytest.fixture
def ended(store, job_id):
    token = store.claim(job_id, "w").token
    store.renew(job_id, token, progress(3))
    store.cancel(job_id)
    store.renew(job_id, token, progress(6))
    store.release(job_id, token, Problem("drained", "stopped"))
    return job_id


def test_the_stream_tells_everything_and_ends_with_the_job(client, ended):
    answer = client.get(f"/jobs/{ended}/events")

    events = parse(answer.text)
    assert answer.mimetype == "text/event-stream"
    assert answer.text.startswith("retry: 3000\n\n")
    assert [kind for _, kind, _ in events] == [
        "queued", "running", "progress", "cancel_requested", "progress", "cancelled",
    ]  # fmt: skip
    assert [data["revision"] for _, _, data in events] == [1, 2, 3, 4, 5, 6]


def test_the_stream_goes_on_behind_the_last_event_seen(client, ended):
    everything = parse(client.get(f"/jobs/{ended}/events").text)

    rest = client.get(f"/jobs/{ended}/events", headers={"Last-Event-ID": everything[3][0]})

    assert parse(rest.text) == everything[4:]


def test_pages_hold_the_same_events(client, ended):
    everything = parse(client.get(f"/jobs/{ended}/events").text)
    accept = {"Accept": "application/json"}

    page = client.get(f"/jobs/{ended}/events", headers=accept).json
    rest = client.get(f"/jobs/{ended}/events?after={everything[2][0]}", headers=accept).json
    none = client.get(f"/jobs/{ended}/events?after={page['next']}", headers=accept).json

    assert [(e["id"], e["type"], e["data"]) for e in page["data"]] == everything
    assert [e["id"] for e in rest["data"]] == [event[0] for event in everything[3:]]
    assert none == {"data": [], "next": page["next"]}


def test_whoever_knows_the_end_already_is_not_kept(client, ended):
    last = parse(client.get(f"/jobs/{ended}/events").text)[-1][0]

    rest = client.get(f"/jobs/{ended}/events", headers={"Last-Event-ID": last})

    assert parse(rest.text) == []


@pytest.mark.parametrize("last", [None, "1-0"])
def test_a_gap_is_filled_by_a_snapshot(client, store, ended, last):
    store.redis.xtrim(store.key(ended) + ":events", maxlen=2, approximate=False)

    headers = {"Last-Event-ID": last} if last else {}
    [(_, kind, data)] = parse(client.get(f"/jobs/{ended}/events", headers=headers).text)

    assert kind == "snapshot"
    assert data["id"] == ended
    assert data["state"] == "cancelled"


def test_without_a_seat_the_stream_tells_what_there_is_and_ends(app, client, job_id):
    app.extensions["modelpress"].room.close()

    events = parse(client.get(f"/jobs/{job_id}/events").text)

    assert [kind for _, kind, _ in events] == ["queued"]


def test_a_place_that_is_none_is_refused(client, job_id):
    last = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "yesterday"})
    after = client.get(f"/jobs/{job_id}/events?after=yesterday")
    form = client.get(f"/jobs/{job_id}/events", headers={"Accept": "image/png"})

    assert (last.status_code, last.json["code"]) == (400, "malformed_request")
    assert (after.status_code, after.json["code"]) == (400, "malformed_request")
    assert (form.status_code, form.json["code"]) == (406, "not_acceptable")
