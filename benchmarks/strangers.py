"""Requests in sequences by tenants who must not see one another: `python -m benchmarks.strangers`.

The claim: whatever the contract allows or nearly allows, in whatever order, with and without keys,
is answered as the contract says, never by a server's error or with what is another tenant's.
"""

import argparse
import contextlib
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from safetensors.numpy import save
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish, table
from benchmarks.processes import running_stack
from jobs.keys import SCOPES, KeyStore

CONTRACT = Path(__file__).parents[1] / "openapi.yaml"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TENANTS = ("acme", "zeta")
NOBODY = "nobody"
_OPEN = ("/livez", "/readyz", "/openapi.yaml", "/docs")
_RECIPE = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}
_JOBS = 4
_MOST_TOLD = 20


@dataclass
class Tally:
    """What came of it.

    Attributes:
        requests: How many were sent, by who sent them and the hundred of the status.
        aimed: How many named something of another tenant's.
        jobs: Whose each job is.
        models: Whose each model is that one tenant has only.
        wrong: Answers that must not be, in words.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    aimed: int = 0
    jobs: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def others(self, who: str) -> list[str]:
        """Give the ids of what belongs to others."""
        return [
            id_ for ids in (self.jobs, self.models) for id_, owner in ids.items() if owner != who
        ]


def main() -> int:
    """Run, judge and publish.

    Returns:
        1 where any answer was wrong, else 0.
    """
    parser = argparse.ArgumentParser(description="Requests by tenants who must not see one another")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-strangers-", dir="/tmp") as name:
        data = Path(name) / "data"
        keys = make_keys(data)
        with running_stack(data) as stack:
            tally = run(stack.url, keys, arguments.requests, arguments.seed)
    if tally.wrong:
        print(*tally.wrong[:_MOST_TOLD], sep="\n", file=sys.stderr)
        return 1
    machine = describe_machine("schemathesis", "flask", "gunicorn")
    publish(arguments.page, "strangers", f"{machine}\n\n{describe(tally)}")
    return 0


def make_keys(data: Path) -> dict[str, str]:
    """Make a key with every scope for each tenant.

    Args:
        data: The data folder of a service that does not run yet.

    Returns:
        The keys by their tenants.
    """
    store = KeyStore(data)
    return {tenant: store.create(tenant, SCOPES, "stranger")[0] for tenant in TENANTS}


def run(url: str, keys: dict[str, str], requests: int, seed: int) -> Tally:
    """Send requests until there were enough.

    Args:
        url: The service's root.
        keys: From `make_keys`.
        requests: How many at least.
        seed: Of who sends which, and of what it is aimed at.

    Returns:
        What came of it; `wrong` is what must not have.
    """
    tally = Tally()
    for tenant in TENANTS:
        _settle(url, tenant, keys[tenant], tally)
    machine = _make_machine(url, keys, tally, random.Random(seed))
    rounds = settings(
        max_examples=25,
        stateful_step_count=20,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    while tally.requests.total() < requests:
        # Who asks is drawn here, and what comes of it depends on what others did before: hypothesis
        # wants neither, for it would play a failure again. Ours is written down when it is seen.
        with contextlib.suppress(Flaky):
            machine.run(settings=rounds)
    return tally


def describe(tally: Tally) -> str:
    """Write the text and the table of the page."""
    hundreds = sorted({hundred for _, hundred in tally.requests})
    rows = [
        (who, *(f"{tally.requests[who, hundred]:,}" for hundred in hundreds))
        for who in (*TENANTS, NOBODY)
    ]
    return (
        f"{tally.requests.total():,} requests, {tally.aimed:,} of them aimed at what another "
        f"tenant has: server errors **0**, foreign data **0**, answers that the contract does not "
        f"name **0**.\n\n{table(('who', *(f'{hundred}xx' for hundred in hundreds)), rows)}"
    )


def _settle(url: str, tenant: str, key: str, tally: Tally) -> None:
    """Give a tenant a model and some jobs, one of them with a name that nobody else may read."""
    weight = np.random.default_rng(TENANTS.index(tenant)).standard_normal((64, 64), np.float32)
    headers = {"Authorization": f"Bearer {key}", "Cache-Control": "no-cache"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        model = http.post("/models", content=save({"weight": weight})).raise_for_status().json()
        tally.models[model["id"]] = tenant
        for _ in range(_JOBS):
            body = {"model": model["id"], "spec": _RECIPE, "labels": {"of": f"secret-of-{tenant}"}}
            job = http.post("/jobs", json=body).raise_for_status().json()
            tally.jobs[job["id"]] = tenant


def _make_machine(url: str, keys: dict[str, str], tally: Tally, chance: random.Random) -> Any:
    schema = schemathesis.openapi.from_path(CONTRACT)
    schema.config.update(base_url=url)
    # A revoked key would end the play: that is tested where it is made.
    schema = schema.exclude(method="DELETE", path_regex="^/keys")

    class Strangers(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            self.who = chance.choice((*TENANTS, *TENANTS, NOBODY))
            _aim(case, tally, chance)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:  # noqa: ARG002 - as above
            key = keys.get(self.who)
            # No answer takes longer: nothing here lets a stream go on.
            return {"headers": {"Authorization": f"Bearer {key}"} if key else {}, "timeout": 90}

        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            request = response.request
            try:
                case.validate_response(response, checks=CHECKS)
                _judge(self.who, response, tally)
            except (AssertionError, BaseExceptionGroup) as error:
                told = f"{request.method} {request.url} by {self.who}: {error!r}"
                tally.wrong.append(f"{told} {getattr(error, 'exceptions', '')}")

    return Strangers


def _aim(case: Any, tally: Tally, chance: random.Random) -> None:
    """Point a request at something that there is, whoever's it may be."""
    for name, ids in (("job_id", tally.jobs), ("model_id", tally.models)):
        if name in (case.path_parameters or {}) and chance.random() < 0.5:
            case.path_parameters[name] = chance.choice(list(ids))
    if case.operation.path == "/jobs" and isinstance(case.body, dict) and chance.random() < 0.5:
        case.body = {**case.body, "model": chance.choice(list(tally.models)), "spec": _RECIPE}


def _judge(who: str, response: Any, tally: Tally) -> None:
    status, request = response.status_code, response.request
    tally.requests[who, status // 100] += 1
    sent = f"{request.url} {request.body!r}"
    text = response.content.decode(errors="replace")
    named = [id_ for id_ in tally.others(who) if id_ in sent]
    tally.aimed += bool(named)
    place = f"{request.method} {request.url} by {who}: {status}"
    for tenant in TENANTS:
        assert tenant == who or f"secret-of-{tenant}" not in text, place
    for id_ in tally.others(who):
        assert id_ in sent or id_ not in text, f"{place} tells of {id_}"
    path = str(request.path_url)
    assert not (status < 400 and any(id_ in path for id_ in named)), place
    if who == NOBODY:
        assert status >= 400 or path.startswith(_OPEN), place
    if status == 202 and request.method == "POST" and path.partition("?")[0] == "/jobs":
        tally.jobs[response.headers["location"][0].rpartition("/")[2]] = who


if __name__ == "__main__":
    sys.exit(main())
