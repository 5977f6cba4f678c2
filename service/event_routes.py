"""The events of a job: a stream for those who listen, pages for those who ask."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
from service.streams import may_pause
from service.waiting import Pause
from service.waiting_room import Room, Wait

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
    listener = _Listener(parts().room, own().jobs, job_id, can_pause=may_pause())
    response = Response(_stream(listener, after, _snapshot(job_id, after)), mimetype=EVENT_STREAM)
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


@dataclass(frozen=True)
class _Listener:
    """Somebody who listens to a job.

    Attributes:
        room: Where it waits.
        store: The job store.
        job_id: The job.
        can_pause: Whether its stream may pause; where not, it waits in its thread.
    """

    room: Room
    store: JobStore
    job_id: str
    can_pause: bool


def _stream(listener: _Listener, after: str, snapshot: Event | None) -> Iterator[bytes]:
    yield b"retry: %d\n\n" % _RECONNECT_MS
    if snapshot is not None:
        yield _render(snapshot)
        if snapshot.data["state"] in TERMINAL_STATES:
            return
    try:
        yield from _listen(listener, snapshot.id if snapshot else after)
    except RedisError:
        # The stream ends: the client comes back and goes on where it was.
        return


def _listen(listener: _Listener, after: str) -> Iterator[bytes]:
    """Yield events until the job has ended, and a comment where there was none for long."""
    room, store, job_id = listener.room, listener.store, listener.job_id
    started = spoke = time.monotonic()
    while True:
        ticket = room.ticket()
        events = store.events(job_id, after)
        for event in events:
            yield _render(event)
            after = event.id
        now = time.monotonic()
        has_ended = bool(events) and events[-1].data["state"] in TERMINAL_STATES
        if has_ended or not room.has_seat or now - started > _MAX_STREAM_SECONDS:
            return
        if events:
            spoke = now
        elif now - spoke >= COMMENT_SECONDS:
            yield b": still here\n\n"
            spoke = now
        if not events:
            job = store.get(job_id)
            # A job that was removed has no last event; one that has ended, no further one.
            if job is None or (job.is_terminal and not store.events(job_id, after)):
                return
        wait = Wait(store.key(job_id), ticket, spoke + COMMENT_SECONDS)
        if listener.can_pause:
            yield Pause.for_wait(wait)
        else:
            room.block(wait)


def _render(event: Event) -> bytes:
    data = json.dumps(event.data, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
