"""Uploads and downloads beside `cp` and nginx: `python -m benchmarks.transfer`.

The claim: the service's processes stay below 150 MB whatever the size, artifacts go out as fast as
nginx sends a file, and what an upload pays for being hashed, checked and durable is known.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import httpx

from benchmarks.checkpoints import write_file
from benchmarks.finished import run_job
from benchmarks.machine import describe_machine, describe_program
from benchmarks.nginx import Nginx, running_nginx
from benchmarks.page import publish, read_arguments, spread, table
from benchmarks.processes import Cost, RunningStack, measure, peak_bytes, running_stack
from modelpress import Client

RECIPE = {"steps": [{"op": "prune", "method": "magnitude", "sparsity": 0.5}]}

_PEERS = _COPY, _PUT = "`cp` + fsync", "nginx, WebDAV PUT + fsync"
_OUR_FILE, _OUR_MIDDLE = "GET …/artifact/model.safetensors", "the same, its middle half"
_FILE, _MIDDLE = "nginx, the file", "nginx, its middle half"

#: Rows of a table: what each measures, once per call.
Ways = dict[str, Callable[[], Cost]]
Costs = dict[str, list[Cost]]


def main() -> None:
    arguments = read_arguments("Uploads and downloads beside cp and nginx", size="2GB", rounds=6)
    machine = describe_machine("gunicorn", "flask", "blake3")
    with tempfile.TemporaryDirectory(prefix="modelpress-transfer-") as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        write_file(model, arguments.size)
        nbytes = model.stat().st_size
        with running_stack(folder / "data") as stack, running_nginx(folder / "nginx") as nginx:
            uploads = take_rounds(upload_ways(model, stack, nginx), arguments.rounds)
            artifact_url, artifact = _make_artifact(model, stack, folder / "data")
            ways = download_ways(artifact_url, artifact, stack, nginx)
            downloads = take_rounds(ways, arguments.rounds)
            peaks = " and ".join(f"{peak_bytes(p) / 1e6:.0f} MB" for p in stack.service())
    programs = f"{describe_program('curl', '--version')}, {describe_program('nginx', '-v')}"
    intro = (
        f"{machine} One file of {nbytes / 1e6:,.0f} MB, in the page cache; {arguments.rounds} "
        f"rounds, interleaved; median (min..max). Every HTTP row has the same client. {programs}."
    )
    into = cost_table(uploads, {f"of {peer}": dict.fromkeys(uploads, peer) for peer in _PEERS})
    out = cost_table(downloads, {"of nginx": {_OUR_FILE: _FILE, _OUR_MIDDLE: _MIDDLE}})
    peaks = f"Peak resident memory of the service's two processes over the whole run: {peaks}."
    publish(arguments.page, "transfer", f"{intro}\n\n{into}\n\n{out}\n\n{peaks}")


def upload_ways(model: Path, stack: RunningStack, nginx: Nginx | None) -> Ways:
    """Give the ways in. The service answers when the model is on the disk, hashed and checked."""
    nbytes = model.stat().st_size
    copy = model.with_name("copy")

    def copied(*, flush: bool) -> Cost:
        cost = measure(lambda: _copy(model, copy, flush=flush), [], nbytes)
        copy.unlink()
        return cost

    def put(*, flush: bool) -> Cost:
        assert nginx is not None
        target = nginx.root / "upload"
        command = ("-T", model, f"{nginx.url}/upload")
        cost = measure(lambda: _send(command, target if flush else None), nginx.processes, nbytes)
        target.unlink()
        return cost

    def posted(*options: str | Path) -> Cost:
        answers: list[bytes] = []
        command = [*options, f"{stack.url}/models"]
        cost = measure(lambda: answers.append(_send(command)), stack.service(), nbytes)
        model_id = json.loads(answers[0])["id"]
        httpx.delete(f"{stack.url}/models/{model_id}", timeout=60).raise_for_status()
        return cost

    ways: Ways = {
        "`cp`": lambda: copied(flush=False),
        _COPY: lambda: copied(flush=True),
        "POST /models, raw body": lambda: posted("-X", "POST", "-T", model),
        "POST /models, multipart": lambda: posted("-F", f"model=@{model}"),
    }
    if nginx is not None:
        ways["nginx, WebDAV PUT"] = lambda: put(flush=False)
        ways[_PUT] = lambda: put(flush=True)
    return ways


def download_ways(url: str, artifact: Path, stack: RunningStack, nginx: Nginx | None) -> Ways:
    """Give the ways out.

    Args:
        url: The job's artifact.
        artifact: Its one large file, on the disk.
        stack: Serves it.
        nginx: Serves the same file.
    """
    nbytes = artifact.stat().st_size
    middle = f"{nbytes // 4}-{nbytes // 4 + nbytes // 2 - 1}"

    def got(source: str, *options: str, server: RunningStack | Nginx, size: int = nbytes) -> Cost:
        processes = server.processes if isinstance(server, Nginx) else server.service()
        command = [*options, "-o", "/dev/null", source]
        return measure(lambda: _send(command), processes, size)

    file_url = f"{url}/{artifact.name}"
    ways: Ways = {
        _OUR_FILE: lambda: got(file_url, server=stack),
        _OUR_MIDDLE: lambda: got(file_url, "-r", middle, server=stack, size=nbytes // 2),
        "GET …/artifact, all of it as a tar": lambda: got(url, server=stack),
    }
    if nginx is not None:
        os.link(artifact, nginx.root / "artifact")
        peer = f"{nginx.url}/artifact"
        ways[_FILE] = lambda: got(peer, server=nginx)
        ways[_MIDDLE] = lambda: got(peer, "-r", middle, server=nginx, size=nbytes // 2)
    return ways


def take_rounds(ways: Ways, rounds: int) -> Costs:
    """Measure every way once in each round, each on a disk that has nothing left to write.

    A way's place in the round moves on by one each time, because what ran before it matters: it
    decides which memory the kernel has at hand.
    """
    rows = list(ways)
    costs: Costs = {row: [] for row in ways}
    for number in range(rounds):
        shift = number % len(rows)
        for row in rows[shift:] + rows[:shift]:
            os.sync()
            costs[row].append(ways[row]())
    return costs


def cost_table(costs: Costs, ratios: dict[str, dict[str, str]]) -> str:
    """Write a table.

    Args:
        costs: Its rows.
        ratios: Further columns: with which other row each row's median speed is compared. nginx
            is missing where it is not installed.

    Returns:
        The table.
    """
    speeds = {row: [cost.megabytes_per_second for cost in taken] for row, taken in costs.items()}
    rows = []
    for row, taken in costs.items():
        compared = []
        for peers in ratios.values():
            peer = speeds.get(peers.get(row, ""))
            compared.append(f"{median(speeds[row]) / median(peer):.2f}" if peer else "")
        cpu = spread((cost.cpu_seconds for cost in taken), digits=2)
        rows.append((row, spread(speeds[row]), *compared, "" if "`cp`" in row else cpu))
    if not any(row.startswith("nginx") for row in costs):
        rows.append(("nginx", "not installed"))
    return table(("way", "MB/s", *ratios, "CPU s of the server"), rows)


def _make_artifact(model: Path, stack: RunningStack, data: Path) -> tuple[str, Path]:
    with Client(stack.url) as client:
        job = run_job(client, client.upload_model(model).id, RECIPE)
    [artifact] = (data / "tenants" / "default" / "jobs" / job.id).glob(
        "artifact-*/model.safetensors"
    )
    return f"{stack.url}/jobs/{job.id}/artifact", artifact


def _copy(source: Path, target: Path, *, flush: bool) -> None:
    subprocess.run(["cp", source, target], check=True)
    if flush:
        subprocess.run(["sync", target], check=True)


def _send(options: Sequence[str | Path], flushed: Path | None = None) -> bytes:
    command = ["curl", "--fail", "--silent", "--show-error", *options]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    if flushed is not None:
        subprocess.run(["sync", flushed], check=True)
    return answer


if __name__ == "__main__":
    main()
