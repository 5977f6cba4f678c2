"""A service in memory that keeps the HTTP contract, behind a real server on a free port."""

import copy
import io
import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import pytest
from flask import Flask, Response, jsonify, request, send_file
from werkzeug.serving import make_server

from modelpress import Backoff, Client

REPORT = json.loads((Path(__file__).parent / "report.json").read_text())
PLAN = json.loads((Path(__file__).parent / "plan.json").read_text())
SUGGESTIONS = json.loads((Path(__file__).parent / "suggestions.json").read_text())


def problem(status: int, code: str, detail: str = "It is wrong.", **extra: Any) -> Response:
    members = {"type": "about:blank", "title": code, "status": status, "code": code}
    members |= {"detail": detail, "retryable": False, "errors": [], **extra}
    return Response(json.dumps(members), status, mimetype="application/problem+json")


@dataclass
class FakeService:
    """The contract, in memory.

    `script` holds what each long poll of a job finds: members to change, or None for nothing.
    `faults` holds answers that are given instead of the right one, each once.
    """

    files: dict[str, bytes] = field(
        default_factory=lambda: {"model.safetensors": bytes(range(256)) * 4096, "a/b.json": b"{}"}
    )
    script: list[dict[str, Any] | None] = field(default_factory=list)
    faults: list[tuple[str, str, Callable[[], Response]]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    is_corrupt: bool = False
    ignores_ranges: bool = False
    plan: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(PLAN))
    measured: set[str] = field(default_factory=set)
    planned: list[dict[str, Any]] = field(default_factory=list)
    cancels: list[dict[str, Any]] = field(default_factory=list)
    paths_told: dict[str, str] = field(default_factory=dict)
    models: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    api_keys: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    polled: threading.Event = field(default_factory=threading.Event)
    moved: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def requests(self, method: str, prefix: str = "/") -> list[dict[str, str]]:
        return [h for m, path, h in self.seen if m == method and path.startswith(prefix)]

    def fail_next(self, method: str, prefix: str, answer: Response) -> None:
        self.faults.append((method, prefix, lambda: answer))

    def will(self, state: str, **members: Any) -> None:
        progress = {"phase": "quantize", "step": 1, "steps": 1, "done": 5, "total": 10}
        progress |= {"unit": "tensors", "eta_seconds": 2.5}
        self.script = [
            {"state": "running", "progress": progress},
            {"state": state, "progress": None, **members},
        ]

    def artifact(self) -> dict[str, Any]:
        files = []
        for path, content in self.files.items():
            facts = {"bytes": len(content), "blake3": blake3.blake3(content).hexdigest()}
            files.append({"path": self.paths_told.get(path, path), "sha256": None, **facts})
        return {"bytes": sum(map(len, self.files.values())), "digest": "blake3:0", "files": files}

    def add_job(self, state: str = "succeeded", **members: Any) -> str:
        job_id = f"job_{len(self.jobs):04d}"
        self.jobs[job_id] = {
            **dict.fromkeys(("progress", "started_at", "finished_at", "failure")),
            "attempts": [],
            "links": {},
            "id": job_id,
            "state": state,
            "revision": 1,
            "attempt": 1,
            "model": "mdl_" + "0" * 64,
            "recipe": {},
            "labels": {},
            "queue_position": 0 if state == "queued" else None,
            "created_at": "2030-01-01T00:00:00Z",
            "artifact": self.artifact() if state == "succeeded" else None,
            "a_member_of_tomorrow": 1,
            **members,
        }
        return job_id

    def change(self, job_id: str, **members: Any) -> None:
        job = self.jobs[job_id]
        job |= members
        job["artifact"] = self.artifact() if job["state"] == "succeeded" else None
        job["revision"] += 1
        self.moved.set()


def make_app(fake: FakeService) -> Flask:  # noqa: C901, PLR0915 - one block a route
    app = Flask(__name__)

    @app.before_request
    def note() -> Response | None:
        fake.seen.append((request.method, request.path, dict(request.headers)))
        for i, (method, prefix, answer) in enumerate(fake.faults):
            if request.method == method and request.path.startswith(prefix):
                del fake.faults[i]
                request.get_data()
                return answer()
        return None

    def facts(identifier: str) -> dict[str, Any]:
        size = len(fake.models[identifier])
        return {"id": identifier, "bytes": size, "format": "safetensors", "tensors": 1}

    @app.get("/models/<identifier>")
    @app.get("/datasets/<identifier>")
    def uploaded(identifier: str) -> Any:
        if identifier not in fake.models:
            return problem(404, "model_not_found")
        return facts(identifier)

    @app.post("/models", defaults={"prefix": "mdl_"})
    @app.post("/datasets", defaults={"prefix": "ds_"}, endpoint="datasets")
    def upload(prefix: str) -> Any:
        body = request.get_data()
        identifier = prefix + blake3.blake3(body).hexdigest()
        fake.models[identifier] = body
        return facts(identifier), 201

    @app.post("/plans")
    def plan() -> Any:
        asked = request.get_json()
        fake.planned.append(asked)
        if "goal" not in asked:
            return fake.plan
        if asked["model"] not in fake.measured:
            return problem(409, "not_measured")
        return {**SUGGESTIONS, "model": asked["model"]}

    @app.post("/jobs")
    def submit() -> Any:
        body = request.get_json()
        key = request.headers["Idempotency-Key"]
        if body["spec"] == {"steps": [{"op": "measure"}]}:
            fake.measured.add(body["model"])
        if key not in fake.keys:
            fake.keys[key] = fake.add_job(
                "queued", model=body["model"], recipe=body["spec"], labels=body["labels"]
            )
        return fake.jobs[fake.keys[key]], 202

    def page_of(found: list[Any]) -> Any:
        begin, limit = int(request.args.get("cursor", 0)), int(request.args["limit"])
        following = str(begin + limit) if begin + limit < len(found) else None
        return {"data": found[begin : begin + limit], "next_cursor": following}

    @app.get("/jobs")
    def jobs() -> Any:
        wanted = request.args.get("state")
        return page_of([job for job in fake.jobs.values() if wanted in (None, job["state"])])

    @app.get("/models")
    def models() -> Any:
        return page_of([facts(one) for one in sorted(fake.models) if one.startswith("mdl_")])

    @app.get("/jobs/<job_id>")
    def job(job_id: str) -> Any:
        if job_id not in fake.jobs:
            return problem(404, "job_not_found", f"There is no job {job_id}.")
        if "If-None-Match" in request.headers:
            fake.polled.set()
            if fake.script:
                step = fake.script.pop(0)
                if step is not None:
                    fake.change(job_id, **step)
            else:
                fake.moved.wait(float(request.headers.get("Prefer", "wait=0").split("=")[1]))
        response = jsonify(fake.jobs[job_id])
        response.set_etag(str(fake.jobs[job_id]["revision"]))
        return response.make_conditional(request)

    @app.post("/jobs/<job_id>/cancel")
    def cancel(job_id: str) -> Any:
        asked = request.get_json() if request.content_length else {}
        fake.change(job_id, **{"stop_requested": True} if asked else {"state": "cancelled"})
        fake.cancels.append(asked)
        return fake.jobs[job_id]

    @app.delete("/jobs/<job_id>")
    def delete(job_id: str) -> Any:
        del fake.jobs[job_id]
        return "", 204

    @app.post("/keys")
    def create_key() -> Any:
        key_id = f"key0000{len(fake.api_keys)}"
        asked = {"tenant": "acme", "expires_at": None, **request.get_json()}
        known = {"id": key_id, "last_characters": "0000", "created_at": "2030-01-01T00:00:00Z"}
        text = f"mp_{key_id}_{'s' * 32}_000000"
        fake.api_keys.append({**asked, **known, "revoked_at": None, "key": text})
        return fake.api_keys[-1], 201

    @app.get("/keys")
    def keys() -> Any:
        return {"data": [{k: v for k, v in key.items() if k != "key"} for key in fake.api_keys]}

    @app.delete("/keys/<key_id>")
    def revoke_key(key_id: str) -> Any:
        [key] = [key for key in fake.api_keys if key["id"] == key_id]
        key["revoked_at"] = "2030-01-02T00:00:00Z"
        return "", 204

    @app.get("/jobs/<job_id>/report")
    def report(job_id: str) -> Any:
        return {**REPORT, "a_member_of_tomorrow": {}}

    @app.get("/jobs/<job_id>/artifact/<path:path>")
    def artifact(job_id: str, path: str) -> Any:
        content = fake.files[path]
        tag = blake3.blake3(content).hexdigest()
        if fake.is_corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        response = send_file(
            io.BytesIO(content), "text/plain", conditional=not fake.ignores_ranges, etag=tag
        )
        if fake.cuts and request.method == "GET":
            response.direct_passthrough = False
            length = response.headers["Content-Length"]
            response.response = [response.get_data()[: fake.cuts.pop(0)]]
            response.headers["Content-Length"] = length
        return response

    return app


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    server = make_server("127.0.0.1", 0, make_app(fake), threaded=True)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.moved.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    backoff = Backoff(attempts=3, first_seconds=0.001)
    with Client(service.url, backoff=backoff, timeout=10) as client:
        yield client


@pytest.fixture
def problem_answer() -> Callable[..., Response]:
    return problem


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


@pytest.fixture
def model_folder(tmp_path: Path, model_file: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(model_file.read_bytes())
    for name in ("config.json", "tokenizer.model", "LICENSE", "chat_template.jinja"):
        (folder / name).write_text(name)
    for name in (".hidden.json", "modeling.py", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_text("stays at home")
    (folder / "sub").mkdir()
    return folder


@pytest.fixture
def report() -> dict[str, Any]:
    return REPORT
