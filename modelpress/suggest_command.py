"""`modelpress suggest`: recipes that reach a goal, the one that loses least first."""

from pathlib import Path
from typing import Any

import click
import yaml

from modelpress.client import Client
from modelpress.errors import ProblemError
from modelpress.session import Session
from modelpress.sizes import format_bytes
from modelpress.suggestion_table import render_suggestions


@click.command()
@click.argument("model")
@click.option("--target", "target_bytes", metavar="SIZE", help="Size at most, such as 500MiB.")
@click.option(
    "--max-size-ratio", type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Artifact bytes over model bytes, at most, such as 0.4.",
)  # fmt: skip
@click.option("--host-memory", metavar="SIZE", help="Memory that the job may take.")
@click.option(
    "--max-loss", type=click.FloatRange(0, min_open=True), help="Predicted loss, at most."
)
@click.option(
    "--max-relative-rmse", type=click.FloatRange(0, min_open=True),
    help="Weights that rounding would change by more stay float.",
)  # fmt: skip
@click.option(
    "--min-cosine", type=click.FloatRange(-1, 1),
    help="Have the recipes run the model and fail where its answers moved further.",
)  # fmt: skip
@click.option(
    "--write", "path", type=click.Path(dir_okay=False), help="Write the first recipe to a file."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
    help="Wait this long at most where the model has to be measured first.",
)  # fmt: skip
@click.pass_obj
def suggest(
    session: Session,
    /,
    model: str,
    path: str | None,
    timeout: float | None,
    **goal: float | str | None,
) -> None:
    """Suggest recipes that make MODEL as small as wanted, the one that loses least first.

    MODEL is as for run. It is uploaded unless it is there, and measured unless it was: that reads
    it a few times and is kept with it.
    """
    wanted = {name: value for name, value in goal.items() if value is not None}
    if not {"target_bytes", "max_size_ratio"} & wanted.keys():
        raise click.UsageError("say how small it shall be: --target or --max-size-ratio")
    with session.client() as client:
        found = _find(session, client, session.upload(client, model), wanted, timeout)
        if path is not None:
            Path(path).write_text(_as_yaml(found["suggestions"][0]))
            session.say(f"recipe in {path}")
        session.answer(found, lambda: render_suggestions(found))


def _find(
    session: Session, client: Client, model_id: str, goal: dict[str, Any], timeout: float | None
) -> dict[str, Any]:
    try:
        return client.suggest(model_id, goal)
    except ProblemError as error:
        if error.code != "not_measured":
            raise
    job = client.measure(model_id)
    session.say(f"job {job.id} measures the model")
    session.wait(client, job.id, timeout, cancel_on_interrupt=False)
    return client.suggest(model_id, goal)


def _as_yaml(suggestion: dict[str, Any]) -> str:
    nbytes = suggestion["plan"]["artifact"]["total_bytes"]
    heading = f"# {format_bytes(nbytes)}, predicted loss {suggestion['loss']:.4f}\n"
    return heading + yaml.safe_dump(suggestion["recipe"], sort_keys=False)
