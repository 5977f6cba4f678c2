"""The events of a job: a stream for those who listen, pages for those who ask."""

import contextlib
import json
import re
import time
from collections.abc import Iterator

from flask import Blueprint, Response, jsonify, request
from redis.exceptions import RedisError

from jobs.job import TERMINAL_STATES
from jobs.problems import Problem
from jobs.records import Event
from jobs.store import JobStore
from service.contract import JSON, Answer, Operation, declare, read_query
from service.documents import EventPage, EventsQuery
from service.job_answers import find_job, job_document
from service.parts import own, parts
from service.waiting import Waiters, slice_ms

routes = Blueprint("events", __name__)

EVENT_STREAM = "text/event-stream"
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
_RECONNECT_MS = 3000
#: A comment this often keeps proxies from closing the stream, and finds peers that are gone.
COMMENT_SECONDS = 15.0
#: A stream is closed after this long; the client's reconnect lands wherever there is room.
_MAX_STREAM_SECONDS = 600.0


@routes.get("/jobs/<job_id>/events")
@declare(
    Operation(
        summary="Follow a job",
        tag="jobs",
        scope="read",
        query=EventsQuery,
        headers=("Last-Event-ID",),
        answers=(
            Answer(
                200,
                "Its events: a stream, or a page of them.",
                {EVENT_STREAM: None, JSON: EventPage},
            ),
        ),
        problems=("job_not_found", "not_acceptable", "store_unavailable"),
    )
)
def show_events(job_id: str) -> Response:
    """Stream the job's events (Server-Sent Events) until it has ended, or give a page in JSON."""
    query = read_query(request, EventsQuery)
    find_job(job_id)
    wanted = request.accept_mimetypes.best_match([EVENT_STREAM, JSON])
    if wanted is None and request.accept_mimetypes:
        raise Problem("not_acceptable", f"Events come as {EVENT_STREAM} or {JSON}.")
    if wanted == JSON:
        return _page(job_id, query.after)
    after = request.headers.get("Last-Event-ID") or query.after
    if after != "0" and not _EVENT_ID.fullmatch(after):
        raise Problem("malformed_request", "Last-Event-ID is not an event's id.")
    stream = _stream(own().jobs, parts().waiters, job_id, after, _snapshot(job_id, after))
    response = Response(stream, mimetype=EVENT_STREAM)
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _page(job_id: str, after: str) -> Response:
    events = own().jobs.events(job_id, after)
    members = [{"id": event.id, "type": event.type, "data": event.data} for event in events]
    return jsonify({"data": members, "next": events[-1].id if events else after})


def _snapshot(job_id: str, after: str) -> Event | None:
    """Give the whole job where events after the one last seen are no longer kept."""
    kept = own().jobs.events(job_id)
    if not kept:
        return None
    first = kept[0]
    is_gap = first.data["revision"] > 1 if after == "0" else _order(first.id) > _order(after)
    if not is_gap:
        return None
    document = job_document(find_job(job_id)).model_dump(mode="json")
    # Its id is that of the last event: what the snapshot tells need not be told again.
    return Event(kept[-1].id, "snapshot", document)


def _stream(
    store: JobStore, waiters: Waiters, job_id: str, after: str, snapshot: Event | None
) -> Iterator[str]:
    yield f"retry: {_RECONNECT_MS}\n\n"
    if snapshot is not None:
        yield _render(snapshot)
        if snapshot.data["state"] in TERMINAL_STATES:
            return
    place = snapshot.id if snapshot else after
    # Where Redis fails, the stream ends: the client comes back and goes on where it was.
    with waiters.seat() as seated, contextlib.suppress(RedisError):
        for event in _listen(store, waiters, job_id, place, seated=seated):
            yield _render(event) if event else ": still here\n\n"


def _listen(
    store: JobStore, waiters: Waiters, job_id: str, after: str, *, seated: bool
) -> Iterator[Event | None]:
    """Yield events until the job has ended, and None where there was nothing to say for long."""
    started = spoke = time.monotonic()
    while True:
        events = store.events(job_id, after, slice_ms(1) if seated else None)
        for event in events:
            yield event
            after = event.id
        now = time.monotonic()
        has_ended = bool(events) and events[-1].data["state"] in TERMINAL_STATES
        is_over = not seated or waiters.is_closing() or now - started > _MAX_STREAM_SECONDS
        if has_ended or is_over:
            return
        if events:
            spoke = now
        elif now - spoke > COMMENT_SECONDS:
            yield None
            spoke = now
            # A job that was removed meanwhile has no last event, and none to come.
            if store.get(job_id) is None:
                return


def _render(event: Event) -> str:
    data = json.dumps(event.data, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n"


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
