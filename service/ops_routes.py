"""What operators and machines ask: capabilities, health, metrics."""

import tempfile
from importlib import metadata
from typing import Literal

import structlog
from flask import Blueprint, Response, jsonify
from redis.exceptions import RedisError

from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.levels import read_levels
from jobs.problems import Problem
from jobs.steps import MeasureStep, PruneStep, QuantizeStep, ShrinkStep
from jobs.store import IDEMPOTENCY_SECONDS
from service.contract import Answer, Operation, declare, json_answer
from service.documents import Capabilities, Health, Limits
from service.identity import identity
from service.job_metrics import JobMetrics
from service.metrics import CONTENT_TYPE
from service.parts import parts
from service.receive import MAX_TEXT_BYTES
from service.waiting import MAX_WAIT_SECONDS

routes = Blueprint("ops", __name__)

_FORMATS_IN = {
    "safetensors": "One .safetensors file.",
    "sharded-safetensors": "A .tar or .zip of shards and their model.safetensors.index.json.",
    "transformers": "A .tar or .zip of either with its config.json.",
    "state-dict": "A state dict written by torch.save; it is read as data and never unpickled.",
    "pt2": "A program of torch.export.save; it is read as data, and run only inside a sandbox.",
}
_FORMATS_OUT = {
    "compressed-tensors": "A transformers folder that transformers and vLLM open; "
    "pack-quantized for w8a16, int-quantized for w8a8.",
    "parquet": "The answers of an infer step, one row each.",
    "pt2": "A .pt2 that torch.export.load opens, for models that are one.",
    "safetensors": "Plain safetensors with a load.py that needs only torch and safetensors.",
}
_READY_KEY = "modelpress:ready"


@routes.get("/capabilities")
@declare(
    Operation(
        summary="What this service can do",
        tag="service",
        scope="read",
        answers=(json_answer(200, "Formats, steps and limits.", Capabilities),),
    )
)
def show_capabilities() -> Response:
    """Give formats, steps with their parameters, and limits."""
    settings = parts().settings
    document = Capabilities(
        version=metadata.version("modelpress"),
        formats_in=_FORMATS_IN,
        formats_out=_FORMATS_OUT,
        steps={
            "shrink": ShrinkStep.model_json_schema(),
            "prune": PruneStep.model_json_schema(),
            "finetune": FinetuneStep.model_json_schema(),
            "quantize": QuantizeStep.model_json_schema(),
            "infer": InferStep.model_json_schema(),
            "measure": MeasureStep.model_json_schema(),
        },
        limits=Limits(
            max_upload_bytes=settings.max_upload,
            max_extracted_bytes=settings.max_extracted,
            max_recipe_bytes=MAX_TEXT_BYTES,
            max_wait_seconds=MAX_WAIT_SECONDS,
        ),
        sandbox=_sandbox_level(),
        idempotency_ttl_seconds=IDEMPOTENCY_SECONDS,
    )
    return jsonify(document.model_dump(mode="json"))


def _sandbox_level() -> Literal["bwrap", "none", "unknown"]:
    try:
        has_sandbox = read_levels(parts().tenants.redis).get("has_sandbox")
    except RedisError:
        return "unknown"
    if has_sandbox is None:
        return "unknown"
    return "bwrap" if has_sandbox else "none"


@routes.get("/livez")
@declare(
    Operation(
        summary="Whether the process answers",
        tag="service",
        scope=None,
        answers=(json_answer(200, "It does.", Health),),
    )
)
def show_live() -> Response:
    """Answer, without asking anyone else."""
    return jsonify({"status": "live"})


@routes.get("/readyz")
@declare(
    Operation(
        summary="Whether jobs can be accepted",
        tag="service",
        scope=None,
        answers=(json_answer(200, "They can.", Health),),
        problems=("store_unavailable", "storage_unavailable"),
    )
)
def show_ready() -> Response:
    """Write to Redis and to the disk."""
    parts().tenants.redis.set(_READY_KEY, "1", ex=60)
    try:
        with tempfile.TemporaryFile(dir=parts().settings.data_dir) as file:
            file.write(b"1")
    except OSError as error:
        structlog.get_logger(__name__).error("storage_unavailable", error=str(error))
        raise Problem("storage_unavailable", "The data folder cannot be written.") from error
    return jsonify({"status": "ready"})


@routes.get("/metrics")
@declare(
    Operation(
        summary="Metrics",
        tag="service",
        scope="read",
        answers=(Answer(200, "Prometheus' text format.", {"text/plain": None}),),
        problems=("operator_only",),
    )
)
def show_metrics() -> Response:
    """Give what is counted and measured of requests, jobs, workers and the disk, of all tenants."""
    if not identity().is_operator:
        raise Problem("operator_only", "The metrics are of all tenants together.")
    jobs = JobMetrics(parts().tenants, parts().settings.data_dir)
    text = parts().metrics.exposition(jobs, parts().room)
    return Response(text, content_type=CONTENT_TYPE)
