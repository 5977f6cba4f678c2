"""Models of which only some blocks are in memory at one time, for those larger than that."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import initialization

from evaluation.faults import blamed_on
from evaluation.models import trusted_config
from jobs.checkpoint import Checkpoint, Shard
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.blocks import block_of
from planning.module_kinds import ModuleKinds

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Block:
    """A part of a model that is in memory as a whole or not at all.

    Attributes:
        name: Its module's name.
        module: The module.
        weights: The tensors of the checkpoint that it holds, by their names in the model.
    """

    name: str
    module: torch.nn.Module
    weights: Mapping[str, str]


class Skeleton:
    """A model whose blocks hold no weights until they are loaded.

    What lies outside of its blocks, embeddings and head, is mapped from the files, so that of it
    only what is used takes memory, and the kernel may take that back.

    Args:
        checkpoint: A transformers folder.
        kinds: What its own code says about its modules.
        dtype: In what its floats are held, as safetensors names it; by default as the library
            holds them.

    Attributes:
        model: A ``PreTrainedModel`` in evaluation mode, which keeps no cache.
        blocks: What `planning.blocks` calls so, in the model's order.

    Raises:
        Problem: `unknown_architecture`: the class is not installed, or its weights are not stored
            as it holds them; `evaluation_failed`: a weight is missing.
    """

    model: Any
    blocks: tuple[Block, ...]

    def __init__(
        self, checkpoint: Checkpoint, kinds: ModuleKinds, dtype: str | None = None
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        transformers.logging.set_verbosity_error()
        self._checkpoint = checkpoint
        self._places = {tensor.name: (shard, tensor) for shard, tensor in checkpoint.walk()}
        model_class, members = trusted_config(checkpoint.folder)
        with blamed_on("evaluation_failed", f"{model_class.__name__} cannot be built"):
            config = model_class.config_class.from_dict(members)
            # A block that is run twice must not find what it left in a cache the first time.
            config.get_text_config().use_cache = False
            with _without_values():
                self.model = model_class(config).eval()
        self._dtype = _DTYPES[dtype] if dtype else _dtype_of(checkpoint)
        self._stored = self._names(kinds)
        self.blocks = tuple(self._find_blocks())
        with blamed_on("evaluation_failed", f"{model_class.__name__} cannot be filled"):
            self._fill_the_rest()

    @property
    def own_dtype(self) -> torch.dtype:
        """In which dtype the library holds the folder's floats, whatever they are held in here."""
        return _dtype_of(self._checkpoint)

    @property
    def stored(self) -> Mapping[str, str]:
        """The tensor of the checkpoint that each of the model's weights is, by name."""
        return self._stored

    def load_all(self) -> None:
        """Read all weights, none of them mapped, into memory of their own; tied ones are one."""
        for name, stored in self._stored.items():
            self._put(name, self.read(stored).to(self._dtype_for(stored)))
        self.model.tie_weights()

    def load(self, block: Block) -> None:
        """Read a block's weights into memory of their own."""
        for name, stored in block.weights.items():
            self._put(name, self.read(stored).to(self._dtype_for(stored)))

    def release(self, block: Block) -> None:
        """Let go of a block's weights."""
        for name in block.weights:
            self._put(name, torch.empty(self._tensor(name).shape, device="meta"))

    def stored_dtype(self, stored: str) -> torch.dtype:
        """Give the dtype in which the checkpoint holds a tensor."""
        return _DTYPES[self._places[stored][1].dtype]

    def read(self, stored: str) -> torch.Tensor:
        """Read a tensor.

        Args:
            stored: Its name in the checkpoint.

        Returns:
            Its values in memory of their own, in the dtype in which they are stored.
        """
        shard, tensor = self._places[stored]
        values = torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
        if values.numel():
            view = values.reshape(-1).view(torch.uint8).numpy().data
            _fill(self._checkpoint.folder / shard.name, shard, tensor, view)
        return values

    def _names(self, kinds: ModuleKinds) -> dict[str, str]:
        """Find the tensor of the checkpoint that each of the model's weights is."""
        held = dict(self.model.named_parameters(remove_duplicate=False))
        held |= _persistent_buffers(self.model)
        found: dict[str, str] = {}
        for stored in self._places:
            own = kinds.renamed.get(stored, stored)
            name = next((n for n in kinds.spellings(own) if n in held), None)
            if stored in kinds.merged:
                raise self._unfit(f"its tensor {stored!r} is made into another while it is loaded")
            if name is not None:
                found[name] = stored
        for name, original in (self.model.all_tied_weights_keys or {}).items():
            if name not in found and original in found:
                found[name] = found[original]
            elif original not in found and name in found:
                found[original] = found[name]
        missing = sorted(name for name in held if name not in found)
        if missing:
            raise Problem(
                "evaluation_failed",
                f"The folder lacks {len(missing)} weights of a {type(self.model).__name__}, such "
                f"as {missing[0]!r}; run with random ones, it would tell nothing.",
            )
        for name, stored in found.items():
            if tuple(held[name].shape) != self._places[stored][1].shape:
                raise self._unfit(f"its tensor {stored!r} is stored in another shape")
        return found

    def _unfit(self, reason: str) -> Problem:
        return Problem(
            "unknown_architecture",
            f"A {type(self.model).__name__} cannot be run block by block: {reason}.",
        )

    def _find_blocks(self) -> Iterator[Block]:
        inside: dict[str, dict[str, str]] = {}
        for name, stored in self._stored.items():
            block = block_of(name)
            if block is not None:
                inside.setdefault(block, {})[name] = stored
        for block, weights in inside.items():
            yield Block(block, self.model.get_submodule(block), weights)

    def _fill_the_rest(self) -> None:
        """Give values to what is in no block, and to what no file holds."""
        inside = {name for block in self.blocks for name in block.weights}
        mapped: dict[str, torch.Tensor] = {}
        for shard in self._checkpoint.shards:
            names = [n for n, s in self._stored.items() if n not in inside]
            path = self._checkpoint.folder / shard.name
            with safe_open(path, framework="pt") as file:
                for stored in {self._stored[n] for n in names} & set(file.keys()):
                    mapped[stored] = file.get_tensor(stored)
        for name, stored in self._stored.items():
            if name not in inside:
                self._put(name, mapped[stored].to(self._dtype_for(stored)))
        for block in self.blocks:
            self.release(block)
        for name, buffer in list(self.model.named_buffers(remove_duplicate=False)):
            if name not in self._stored:
                self._put(name, torch.empty_like(buffer, device="cpu"))
        for module in self.model.modules():
            module._is_hf_initialized = False  # noqa: SLF001
        # It gives buffers that no file holds the values that they are computed to have.
        self.model.initialize_weights()

    def _dtype_for(self, stored: str) -> torch.dtype:
        own = self.stored_dtype(stored)
        return self._dtype if own.is_floating_point else own

    def _tensor(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.model.get_parameter_or_buffer(name)
        return found

    def _put(self, name: str, values: torch.Tensor) -> None:
        path, _, last = name.rpartition(".")
        module = self.model.get_submodule(path)
        if last in module._parameters:  # noqa: SLF001 - torch gives no other way to put one there
            module._parameters[last] = torch.nn.Parameter(values, requires_grad=False)  # noqa: SLF001
        else:
            module._buffers[last] = values  # noqa: SLF001
        # The library computes the values of what does not say so.
        getattr(module, last)._is_hf_initialized = name in self._stored  # noqa: SLF001


@contextmanager
def _without_values() -> Iterator[None]:
    with torch.device("meta"), initialization.meta_device_safe_creation_ops():
        yield


def _persistent_buffers(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    names = set(model.state_dict().keys())
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def _dtype_of(checkpoint: Checkpoint) -> torch.dtype:
    """Give the dtype in which the library runs a folder: what its config says, or its weights."""
    config = checkpoint.config or {}
    named = config.get("dtype", config.get("torch_dtype"))
    found = getattr(torch, named, None) if isinstance(named, str) else None
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    own = (_DTYPES.get(tensor.dtype) for tensor in checkpoint.tensors.values())
    return next((dtype for dtype in own if dtype and dtype.is_floating_point), torch.float32)


def _fill(path: Path, shard: Shard, tensor: TensorSpec, view: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(shard.header.data_start + tensor.start)
        while view.nbytes:
            got = file.readinto(view)
            if not got:
                raise Problem("invalid_checkpoint", f"{shard.name} ended inside {tensor.name!r}.")
            view = view[got:]
