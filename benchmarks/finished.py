"""Jobs run to where nothing of them is left to do."""

import time
from collections.abc import Mapping
from typing import Any

from modelpress import Client, Job


def run_job(client: Client, model_id: str, recipe: Mapping[str, Any]) -> Job:
    """Run a job, and wait for the digests that follow it, which would disturb the next one.

    Args:
        client: The service.
        model_id: The model.
        recipe: What to do with it.

    Returns:
        The job, succeeded.
    """
    job = client.wait(client.submit(model_id, recipe, use_cache=False).id)
    while not all(file["sha256"] for file in client.job(job.id).raw["artifact"]["files"]):
        time.sleep(0.05)
    return job
