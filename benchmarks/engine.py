"""Our engine beside `cp -r` and five int8 quantizers: `python -m benchmarks.engine`.

The claim: compressing a checkpoint costs no more than copying it, in a few megabytes of memory
whatever its size, and is at least as accurate as any peer.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import httpx

from benchmarks.checkpoints import Llama, write_llama
from benchmarks.comparison import Comparison, Row, enter_job, enter_way, take_rounds
from benchmarks.engine_page import comparison_text
from benchmarks.engine_plot import draw_comparisons
from benchmarks.machine import describe_machine
from benchmarks.page import PAGE, publish
from benchmarks.processes import running_stack
from benchmarks.watching import watch
from benchmarks.ways import PEERS, copies, ours, peers
from modelpress import Client

SIZES = {
    "2M": Llama(256, 640, 2, 2, 1000),
    "0.5B": Llama(1536, 4256, 16, 4, 32_000),
    "1.1B": Llama(2048, 5632, 22, 4, 32_000),
    "3B": Llama(3072, 8192, 28, 16, 32_000),
}
#: The model, the copy of it in the service, an output that may be as large, and a copy to warm up.
_MODELS_ON_DISK = 4


def main() -> None:
    arguments = _read_arguments()
    machine = describe_machine("torch", "numba", "safetensors")
    # No peer needs anything from a hub, and waiting for one would be measured.
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="modelpress-engine-") as name:
        folder = Path(name)
        _check_space(folder, arguments.size)
        _warm_up(folder)
        with running_stack(folder / "data") as stack, Client(stack.url) as client:
            comparisons = [
                Comparison(size, SIZES[size], _compare(folder, size, stack.url, client, arguments))
                for size in arguments.size
            ]
    draw_comparisons(comparisons, arguments.page.with_name("engine.svg"))
    publish(arguments.page, "engine", comparison_text(machine, comparisons))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our engine beside cp -r and int8 quantizers")
    scripts = [peer.script for peer in PEERS]
    sizes = ["0.5B", "1.1B", "3B"]
    parser.add_argument("--size", nargs="+", choices=SIZES, default=sizes, help="of the model")
    parser.add_argument("--rounds", type=int, default=5, help="of ours and copies; default 5")
    parser.add_argument("--peers", nargs="*", choices=scripts, default=scripts)
    parser.add_argument("--peer-rounds", type=int, default=2, help="of the peers; default 2")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    return parser.parse_args()


def _check_space(folder: Path, sizes: list[str]) -> None:
    needed = _MODELS_ON_DISK * max(2 * SIZES[size].parameters for size in sizes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{needed / 1e9:.0f} GB are needed in {folder}, {free / 1e9:.0f} are free")


def _warm_up(folder: Path) -> None:
    """Have every kernel compiled, which is done once per installation."""
    model, output = folder / "warm-up", folder / "output"
    write_llama(model, SIZES["2M"])
    for way in ours():
        watch(way.command(model, output))
        shutil.rmtree(output)
    shutil.rmtree(model)


def _compare(
    folder: Path, size: str, url: str, client: Client, arguments: argparse.Namespace
) -> list[Row]:
    print(f"{size}:", flush=True)
    model, output = folder / f"llama-{size}", folder / "output"
    write_llama(model, SIZES[size])
    model_id = client.upload_model(model).id
    [stored] = (folder / "data" / "tenants" / "default" / "models").glob("*/files")
    competitors = peers(arguments.peers)
    entrants = [
        *(enter_way(way, arguments.rounds, model, output) for way in [*copies(), *ours()]),
        enter_job(client, model_id, stored, arguments.rounds),
        *(enter_way(way, arguments.peer_rounds, model, output) for way in competitors),
    ]
    rows = take_rounds(entrants, folder / "scratch")
    httpx.delete(f"{url}/models/{model_id}", timeout=60).raise_for_status()
    shutil.rmtree(model)
    installed = {way.name for way in competitors}
    missing = [p.name for p in PEERS if p.script in arguments.peers and p.name not in installed]
    return [*rows, *(Row(name, is_peer=True, failure="not installed") for name in missing)]


if __name__ == "__main__":
    main()
