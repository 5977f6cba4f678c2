import contextlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from jobs.blobs import now_ms
from jobs.checkpoint import open_checkpoint
from jobs.job import JobSpec, new_job_id
from jobs.queue import make_celery
from jobs.recipe import parse_recipe
from jobs.safetensors_header import TensorSpec, encode_header
from jobs.settings import Settings
from jobs.store import connect
from jobs.tenants import DEFAULT_TENANT, Tenants
from worker.supervisor import Supervisor

LLAMA = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
INT8 = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


class Workshop:
    """A supervisor with its stores, as a pool child has them, and ways to give it work."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.settings = Settings(
            redis_url=redis_url, data_dir=folder, renew_seconds=0.05, device="cpu", queue="none"
        )
        self.tenants = Tenants(self.settings, connect(redis_url))
        own = self.tenants.stores(DEFAULT_TENANT)
        self.store, self.blobs = own.jobs, own.blobs
        self.celery = make_celery(self.settings)
        self.supervisor = Supervisor(self.settings, self.tenants, self.celery)

    def close(self) -> None:
        self.supervisor.stop()
        self.celery.close()
        self.store.redis.close()

    def put_model(self, digit: str, write) -> str:
        digest = digit * 64
        with self.blobs.stage() as staged:
            write(staged / "files" / "model.safetensors")
            facts = open_checkpoint(staged / "files").facts()
            self.blobs.publish("models", digest, staged, facts)
        return f"mdl_{digest}"

    def small_model(self) -> str:
        weights = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
        return self.put_model("a", lambda path: save_file({"fc.weight": weights}, path))

    def large_model(self) -> str:
        # A sparse file of zeros: large enough to be still at work when a test looks, and free.
        def write(path: Path) -> None:
            spec = TensorSpec("fc.weight", "F32", (2**15, 2**12), 0)
            with path.open("wb") as file:
                file.write(encode_header([spec], {}))
                file.truncate(file.tell() + spec.nbytes)

        return self.put_model("b", write)

    def submit(self, model: str, recipe=INT8, *, use_cache: bool = False) -> str:
        spec = JobSpec(
            id=new_job_id(),
            model=model,
            recipe=parse_recipe(recipe),
            created_ms=now_ms(),
            use_cache=use_cache,
        )
        self.blobs.write_spec(spec)
        self.store.submit(spec)
        return spec.id

    def run(self, model: str, recipe=INT8, *, use_cache: bool = False):
        job_id = self.submit(model, recipe, use_cache=use_cache)
        self.supervisor.run(DEFAULT_TENANT, job_id)
        return self.store.get(job_id)

    def runner(self) -> psutil.Process:
        """Wait until a runner is at work, and give it."""
        # Before it is ready, the template forks a process that measures itself.
        self.supervisor.runners.idle_bytes()
        template = psutil.Process(self.supervisor.runners.template_pid)
        while True:
            for process in template.children(recursive=True):
                # Until it leads a session, it would outlive its template.
                with contextlib.suppress(ProcessLookupError):
                    if os.getsid(process.pid) == process.pid:
                        return process

    def while_running(self, job_id: str, act) -> None:
        """Run a job here while another thread acts on its runner."""
        seen: list[BaseException] = []

        def watch() -> None:
            runner = self.runner()
            try:
                act(runner)
            except BaseException as error:  # noqa: BLE001 - shown by the test itself
                seen.append(error)
                runner.kill()

        thread = threading.Thread(target=watch)
        thread.start()
        self.supervisor.run(DEFAULT_TENANT, job_id)
        thread.join()
        assert seen == []


@pytest.fixture
def make_workshop(redis_url):
    """Opens a workshop in a folder."""
    opened = []

    def make(folder: Path) -> Workshop:
        opened.append(Workshop(redis_url, folder))
        return opened[-1]

    yield make
    for workshop in opened:
        workshop.close()


@pytest.fixture
def workshop(make_workshop, tmp_path):
    return make_workshop(tmp_path)


@pytest.fixture
def put(workshop):
    """Store a folder as a model, or bytes as a data set."""

    def put(content, digit="c"):
        digest = digit * 64
        store = "datasets" if isinstance(content, bytes) else "models"
        with workshop.blobs.stage() as staged:
            if store == "datasets":
                (staged / "files" / "data").write_bytes(content)
                facts = {}
            else:
                shutil.copytree(content, staged / "files", dirs_exist_ok=True)
                facts = open_checkpoint(staged / "files").facts()
            workshop.blobs.publish(store, digest, staged, facts)
        return ("ds_" if store == "datasets" else "mdl_") + digest

    return put


@pytest.fixture
def llama(tmp_path, put):
    """Store a small language model as a transformers folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path / "llama"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder)
    return put(folder)
