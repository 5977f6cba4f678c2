"""The `modelpress` command: a model in, a smaller one and a report out.

Its exit codes are those of `modelpress.exit_codes`, which `modelpress --help` lists.
"""

import signal
from itertools import islice
from typing import Any

import click

from modelpress import __version__
from modelpress.client import API_KEY_VARIABLE, DEFAULT_URL
from modelpress.exit_codes import DOES_NOT_FIT, HELP
from modelpress.job_table import render_job, render_jobs
from modelpress.key_commands import keys_group
from modelpress.plan_table import render_plan
from modelpress.recipe_file import read_recipe
from modelpress.report_table import render_report
from modelpress.session import Session
from modelpress.suggest_command import suggest
from modelpress.values import JOB_STATES


def _recipe(_: click.Context, __: click.Parameter, path: str) -> dict[str, Any]:
    try:
        with click.open_file(path, "rb") as file:
            return read_recipe(file.read())
    except ValueError as error:
        raise click.BadParameter(f"{path} {error}") from error


def _labels(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not of the form key=value")
    return dict(pair.split("=", 1) for pair in pairs)


recipe_option = click.option(
    "--recipe", "-r", required=True, callback=_recipe,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="The recipe, in YAML or JSON; - reads standard input.",
)  # fmt: skip
label_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", callback=_labels,
    help="Attach a label; may be given again.",
)  # fmt: skip
output_option = click.option(
    "--output", "-o", required=True, type=click.Path(file_okay=False),
    help="Folder for the artifact. A download that was cut goes on there.",
)  # fmt: skip
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
    help="Wait for the job this long at most. The job itself goes on.",
)  # fmt: skip
cancel_option = click.option(
    "--cancel-on-interrupt", is_flag=True, help="Cancel the job on Ctrl-C or SIGTERM."
)
cache_option = click.option(
    "--no-cache", "use_cache", is_flag=True, flag_value=False, default=True,
    help="Run the job even where an equal one has its artifact.",
)  # fmt: skip
dataset_option = click.option(
    "--dataset", metavar="FILE",
    help="What calibrate and evaluate go by, where they name none: JSON lines, .safetensors, .npz, "
    "or an id (ds_...). A recipe with neither evaluates on it.",
)  # fmt: skip
tensors_option = click.option(
    "--all-tensors", is_flag=True, help="List every changed tensor, not only the ten worst."
)
wanted_job = click.argument("job_id", metavar="JOB")


@click.group(epilog=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url", envvar="MODELPRESS_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
    help="The service.",
)  # fmt: skip
@click.option(
    "--api-key", envvar=API_KEY_VARIABLE, show_envvar=True, metavar="KEY",
    help="The API key. In the variable nobody else on the machine sees it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON on standard output.")
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context, url: str, api_key: str | None, *, as_json: bool) -> None:
    """Compress PyTorch models with a Modelpress service.

    Options such as --url and --json stand before the command.
    """
    context.obj = Session(url, as_json, api_key)


@cli.command()
@click.argument("model")
@recipe_option
@output_option
@label_option
@timeout_option
@cancel_option
@cache_option
@dataset_option
@tensors_option
@click.pass_obj
def run(
    session: Session,
    model: str,
    recipe: dict[str, Any],
    output: str,
    labels: dict[str, str],
    timeout: float | None,
    dataset: str | None,
    *,
    cancel_on_interrupt: bool,
    use_cache: bool,
    all_tensors: bool,
) -> None:
    """Upload MODEL, compress it, download the artifact and print the report.

    MODEL is a .safetensors file, a folder with such files, a .tar or .zip of one, a .pt2, or the id
    (mdl_...) of an uploaded model.
    """
    with session.client() as client:
        recipe = session.with_dataset(client, recipe, dataset)
        job = client.submit(session.upload(client, model), recipe, labels, use_cache=use_cache)
        session.say(f"job {job.id}")
        if job.cache == "hit":
            session.say("An equal job had the artifact; nothing is run. --no-cache runs it.")
        job = session.wait(client, job.id, timeout, cancel_on_interrupt=cancel_on_interrupt)
        files = session.download(client, job.id, output)
        report = client.report(job.id)
        session.answer(
            {"job": job.raw, "files": files, "report": report},
            lambda: render_report(report, all_tensors=all_tensors),
        )


@cli.command()
@click.argument("model")
@recipe_option
@click.pass_obj
def plan(session: Session, model: str, recipe: dict[str, Any]) -> None:
    """Say what compressing MODEL would take and whether the recipe's budget allows it.

    MODEL is a .safetensors file, a folder with such files, or the id of an uploaded model. Nothing
    is run, and of a file only its header is sent.
    """
    with session.client() as client:
        members = client.plan(model, recipe)
        session.answer(members, lambda: render_plan(members))
    if not members["fits"]:
        raise SystemExit(DOES_NOT_FIT)


@cli.command()
@click.argument("model")
@recipe_option
@label_option
@click.option(
    "--idempotency-key", help="The same key, on another run of this command, makes no second job."
)
@cache_option
@dataset_option
@click.pass_obj
def submit(
    session: Session,
    model: str,
    recipe: dict[str, Any],
    labels: dict[str, str],
    idempotency_key: str | None,
    dataset: str | None,
    *,
    use_cache: bool,
) -> None:
    """Upload MODEL, submit a job for it and print the job's id."""
    with session.client() as client:
        recipe = session.with_dataset(client, recipe, dataset)
        model_id = session.upload(client, model)
        job = client.submit(model_id, recipe, labels, idempotency_key, use_cache=use_cache)
        session.answer(job.raw, lambda: job.id)


@cli.command()
@wanted_job
@timeout_option
@cancel_option
@click.pass_obj
def wait(
    session: Session, job_id: str, timeout: float | None, *, cancel_on_interrupt: bool
) -> None:
    """Wait until JOB succeeds."""
    with session.client() as client:
        job = session.wait(client, job_id, timeout, cancel_on_interrupt=cancel_on_interrupt)
        session.answer(job.raw, lambda: render_job(job))


@cli.command()
@wanted_job
@click.pass_obj
def status(session: Session, job_id: str) -> None:
    """Show JOB as it is now. A job that failed is no error here."""
    with session.client() as client:
        job = client.job(job_id)
        session.answer(job.raw, lambda: render_job(job))


@cli.command()
@wanted_job
@click.option(
    "--keep", is_flag=True, help="End only its training, and make an artifact of what was trained."
)
@click.pass_obj
def cancel(session: Session, job_id: str, *, keep: bool) -> None:
    """Ask JOB to stop. One that has ended stays as it is."""
    with session.client() as client:
        job = client.cancel(job_id, keep=keep)
        session.answer(job.raw, lambda: render_job(job))


@cli.command()
@wanted_job
@tensors_option
@click.pass_obj
def report(session: Session, job_id: str, *, all_tensors: bool) -> None:
    """Print the report of JOB."""
    with session.client() as client:
        members = client.report(job_id)
        session.answer(members, lambda: render_report(members, all_tensors=all_tensors))


@cli.command()
@wanted_job
@output_option
@click.pass_obj
def download(session: Session, job_id: str, output: str) -> None:
    """Download the artifact of JOB and verify it; print the files."""
    with session.client() as client:
        files = session.download(client, job_id, output)
        session.answer({"files": files}, lambda: "\n".join(files))


@cli.command("ls")
@click.option("--state", type=click.Choice(JOB_STATES), help="Only jobs in this state.")
@click.option("--label", metavar="KEY=VALUE", help="Only jobs with this label.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
@click.pass_obj
def list_jobs(session: Session, state: str | None, label: str | None, limit: int) -> None:
    """List the newest jobs."""
    with session.client() as client:
        wanted = label.replace("=", ":", 1) if label else None
        pages = client.jobs(state=state, label=wanted, page_size=min(limit, 100))
        jobs = list(islice(pages, limit))
        session.answer({"data": [job.raw for job in jobs]}, lambda: render_jobs(jobs))


@cli.command("rm")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.pass_obj
def remove(session: Session, job_ids: tuple[str, ...]) -> None:
    """Remove each JOB, which must have ended, and its artifact."""
    with session.client() as client:
        for job_id in job_ids:
            client.delete(job_id)
        session.answer({"removed": list(job_ids)}, lambda: "\n".join(job_ids))


cli.add_command(keys_group)
cli.add_command(suggest)


def main() -> None:
    """Run the command; SIGTERM counts as Ctrl-C, because CI systems stop a step with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli(prog_name="modelpress")
