"""What the commands share: the service they talk to, and what goes to which stream.

Standard output holds the answer and nothing else: with `--json` one JSON document, also when the
command fails. Progress, notes and errors for people go to standard error.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import click
from rich.console import Console, RenderableType

from modelpress.client import Client
from modelpress.errors import Fault, ModelpressError, ProblemError
from modelpress.exit_codes import INTERRUPTED, exit_code
from modelpress.meters import meter, show_bytes, show_job
from modelpress.sizes import printable
from modelpress.values import Job, is_dataset_id, is_model_id

LOG_WIDTH = 120


@dataclass(frozen=True)
class Session:
    """One run of the command.

    Attributes:
        url: The service's root.
        as_json: Whether standard output is for a program.
        api_key: The API key, if there is one.
    """

    url: str
    as_json: bool
    api_key: str | None = field(default=None, repr=False)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect to the service, and end the command where a block fails.

        Yields:
            The client.

        Raises:
            UsageError: The URL is none, or the API key.
            SystemExit: The block raised an error; its code is that of `exit_code`.
        """
        try:
            client = Client(self.url, api_key=self.api_key)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            with client:
                yield client
        except KeyboardInterrupt:
            self._fail("Interrupted.", INTERRUPTED, {})
        except (ModelpressError, OSError) as error:
            job = getattr(error, "job", None)
            members = {
                "problem": error.problem if isinstance(error, ProblemError) else None,
                "job": job.raw if isinstance(job, Job) else None,
            }
            self._fail(str(error), exit_code(error), members, getattr(error, "errors", ()))

    def say(self, text: str) -> None:
        """Tell the user something that is no answer."""
        click.echo(printable(text), err=True)

    def answer(self, members: Any, render: Callable[[], RenderableType]) -> None:  # noqa: ANN401
        """Print the answer.

        Args:
            members: What a program gets, as JSON.
            render: Makes what a person gets.
        """
        if self.as_json:
            click.echo(json.dumps(members, indent=2))
            return
        width = None if sys.stdout.isatty() else LOG_WIDTH
        Console(file=sys.stdout, width=width, highlight=False, markup=False).print(render())

    def upload(self, client: Client, model: str) -> str:
        """Upload a model with a meter, unless it is an id already.

        Args:
            client: The service.
            model: A path, or the id of an uploaded model.

        Returns:
            The model's id.
        """
        if is_model_id(model):
            return model
        with meter(sys.stderr) as shown:
            shown.show("reading the model", 0, 0, "")
            uploaded = client.upload_model(model, show_bytes(shown, "upload"))
        self.say(f"model {uploaded.id}")
        return uploaded.id

    def with_dataset(
        self, client: Client, recipe: dict[str, Any], dataset: str | None
    ) -> dict[str, Any]:
        """Have a recipe name a data set, uploaded with a meter unless it is an id already.

        Args:
            client: The service.
            recipe: The recipe.
            dataset: A path, or the id of an uploaded data set; None leaves the recipe as it is.

        Returns:
            The recipe, whose `calibrate`, `evaluate`, finetune and infer steps name it unless
            they name another; one that has none of these evaluates on it.
        """
        if dataset is None:
            return recipe
        if not is_dataset_id(dataset):
            with meter(sys.stderr) as shown:
                dataset = client.upload_dataset(dataset, show_bytes(shown, "upload")).id
            self.say(f"data set {dataset}")
        named = _with_step_dataset(recipe, dataset)
        sections = [name for name in ("calibrate", "evaluate") if name in recipe]
        if not sections and named == recipe:
            sections = ["evaluate"]
        for name in sections:
            asked = recipe.get(name) or {}
            # What is wrong with anything else is for the service to say.
            if isinstance(asked, dict):
                named[name] = {"dataset": dataset, **asked}
        return named

    def wait(
        self, client: Client, job_id: str, timeout: float | None, *, cancel_on_interrupt: bool
    ) -> Job:
        """Wait for a job with a meter.

        Args:
            client: The service.
            job_id: The job.
            timeout: Seconds to wait at most.
            cancel_on_interrupt: Whether an interrupt takes the job down too.

        Returns:
            The job, succeeded.

        Raises:
            KeyboardInterrupt: The user does not want to wait; what becomes of the job was told.
        """
        try:
            with meter(sys.stderr) as shown:
                return client.wait(job_id, timeout, lambda job: show_job(shown, job))
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                # The interrupt may have left a request half sent, so this takes a new connection.
                with Client(self.url, api_key=self.api_key) as fresh:
                    fresh.cancel(job_id)
                self.say(f"{job_id} was asked to stop.")
            else:
                self.say(f"{job_id} goes on. To wait for it again, and then fetch its artifact:")
                self.say(f"  modelpress --url {self.url} wait {job_id}")
                self.say(f"  modelpress --url {self.url} download {job_id} -o FOLDER")
            raise

    def download(self, client: Client, job_id: str, folder: str) -> list[str]:
        """Download an artifact with a meter.

        Args:
            client: The service.
            job_id: The job.
            folder: Where to.

        Returns:
            The paths of the files.
        """
        with meter(sys.stderr) as shown:
            files = client.download(job_id, folder, show_bytes(shown, "download"))
        self.say(f"artifact in {folder}, digests verified")
        return [str(file) for file in files]

    def _fail(
        self, text: str, code: int, members: dict[str, Any], faults: tuple[Fault, ...] = ()
    ) -> NoReturn:
        self.say(f"Error: {text}" if code != INTERRUPTED else text)
        for fault in faults:
            self.say(f"  {fault.pointer or '/'}: {fault.detail}")
        if self.as_json:
            error = {"exit_code": code, "detail": text, **members}
            click.echo(json.dumps({"error": error}, indent=2))
        raise SystemExit(code)


def _with_step_dataset(recipe: dict[str, Any], dataset: str) -> dict[str, Any]:
    """Have steps name a data set that need one, unless they name another."""
    steps = recipe.get("steps")
    if not isinstance(steps, list):
        return dict(recipe)
    named = [
        {"dataset": dataset, **step} if isinstance(step, dict) and _reads_rows(step) else step
        for step in steps
    ]
    return {**recipe, "steps": named}


def _reads_rows(step: dict[str, Any]) -> bool:
    return step.get("op") in {"finetune", "infer"}
