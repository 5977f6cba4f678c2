"""Models of which only some blocks are in memory at one time, for those larger than that."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import initialization
from transformers.modeling_utils import local_torch_dtype

from evaluation.activation_rounding import round_activations
from evaluation.faults import blamed_on
from evaluation.models import trusted_config
from evaluation.weight_files import DTYPES, WeightFiles
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from planning.blocks import block_of
from planning.module_kinds import ModuleKinds


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

    What lies outside of its blocks, embeddings and head, is mapped from the files where it is
    stored as it is held, so that of it only what is used takes memory, until it is forgotten.

    Args:
        checkpoint: A transformers folder: a model, or an artifact, whose int8 weights are held as
            floats. Activations are rounded where its config says so.
        kinds: What its own code says about its modules.
        dtype: In what its floats are held, as safetensors names it; by default as the library
            holds them.

    Attributes:
        model: A ``PreTrainedModel`` in evaluation mode, which keeps no cache.
        own_dtype: In what the library holds the folder's floats, whatever they are held in here.
        blocks: What `planning.blocks` calls so, in the model's order.
        head: What turns what the blocks put out into logits, in none of them; None where there is
            no such module.

    Raises:
        Problem: `unknown_architecture`: the class is not installed, or its weights are not stored
            as it holds them; `evaluation_failed`: a weight is missing.
    """

    model: Any
    own_dtype: torch.dtype
    blocks: tuple[Block, ...]
    head: torch.nn.Module | None

    def __init__(
        self, checkpoint: Checkpoint, kinds: ModuleKinds, dtype: str | None = None
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        transformers.logging.set_verbosity_error()
        self._files = WeightFiles(checkpoint)
        model_class, members = trusted_config(checkpoint.folder)
        quantization = members.pop("quantization_config", None)
        with blamed_on("evaluation_failed", f"{model_class.__name__} cannot be built"):
            self.own_dtype = _dtype_of(checkpoint.config, self._files)
            self._dtype = DTYPES[dtype] if dtype else self.own_dtype
            config = model_class.config_class.from_dict(members)
            # A block that is run twice must not find what it left in a cache the first time.
            config.get_text_config().use_cache = False
            with _without_values(), local_torch_dtype(self._dtype):
                self.model = model_class(config).eval()
        self._exact = None if dtype else _kept_exact(self.model, self._dtype)
        self._stored = self._names(kinds)
        self.blocks = tuple(self._find_blocks())
        self.head = self.model.get_output_embeddings()
        with blamed_on("evaluation_failed", f"{model_class.__name__} cannot be filled"):
            self._fill_the_rest()
            round_activations(self.model, quantization)

    @property
    def weight_bytes(self) -> int:
        """The most that its weights take at a time: those of a block, and those outside."""
        sizes = [
            sum(tensor.nbytes for tensor in (*b.module.parameters(), *b.module.buffers()))
            for b in self.blocks
        ]
        outside = {s: self._tensor(n) for n, s in self._stored.items() if block_of(n) is None}
        return max(sizes, default=0) + sum(tensor.nbytes for tensor in outside.values())

    @property
    def stored(self) -> Mapping[str, str]:
        """The tensor of the checkpoint that each of the model's weights is, by name."""
        return self._stored

    def load_all(self) -> None:
        """Read all weights, none of them mapped, into memory of their own; tied ones are one."""
        for name, stored in self._stored.items():
            self._put(name, self._files.read(stored, self._dtype_for(name)))
        self.model.tie_weights()

    def load(self, block: Block) -> None:
        """Read a block's weights into memory of their own."""
        for name, stored in block.weights.items():
            self._put(name, self._files.read(stored, self._dtype_for(name)))

    def release(self, block: Block) -> None:
        """Let go of a block's weights."""
        for name in block.weights:
            dtype = self._dtype_for(name)
            self._put(name, torch.empty(self._tensor(name).shape, dtype=dtype, device="meta"))

    def forget(self) -> None:
        """Let go of what was looked at outside of the blocks, until it is looked at again."""
        self._files.forget()

    def stored_dtype(self, stored: str) -> torch.dtype:
        """Give the dtype in which the checkpoint holds a tensor."""
        return self._files.dtype(stored)

    def _names(self, kinds: ModuleKinds) -> dict[str, str]:
        """Find the tensor of the checkpoint that each of the model's weights is."""
        held = dict(self.model.named_parameters(remove_duplicate=False))
        held |= _persistent_buffers(self.model)
        found: dict[str, str] = {}
        for stored in self._files.weights:
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
            if tuple(held[name].shape) != self._files.weights[stored].tensor.shape:
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
        held: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        for name, stored in self._stored.items():
            if name not in inside:
                key = stored, self._dtype_for(name)
                # What is tied is one tensor.
                held[key] = held[key] if key in held else self._hold(*key)
                self._put(name, held[key])
        for block in self.blocks:
            self.release(block)
        for name, buffer in list(self.model.named_buffers(remove_duplicate=False)):
            if name not in self._stored:
                self._put(name, torch.empty_like(buffer, device="cpu"))
        for module in self.model.modules():
            module._is_hf_initialized = False  # noqa: SLF001
        # It gives buffers that no file holds the values that they are computed to have.
        self.model.initialize_weights()

    def _hold(self, stored: str, dtype: torch.dtype) -> torch.Tensor:
        is_as_stored = self._files.weights[stored].scale is None
        if is_as_stored and self.stored_dtype(stored) == dtype:
            return self._files.map(stored)
        return self._files.read(stored, dtype)

    def _dtype_for(self, name: str) -> torch.dtype:
        own = self.stored_dtype(self._stored[name])
        if not own.is_floating_point:
            return own
        return torch.float32 if self._exact and self._exact.search(name) else self._dtype

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


def _dtype_of(config: Mapping[str, Any] | None, files: WeightFiles) -> torch.dtype:
    """Give the dtype in which the library runs a folder: what its config says, or its weights."""
    members = config or {}
    named = members.get("dtype", members.get("torch_dtype"))
    found = getattr(torch, named, None) if isinstance(named, str) else None
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    own = (DTYPES.get(weight.tensor.dtype) for weight in files.weights.values())
    return next((dtype for dtype in own if dtype and dtype.is_floating_point), torch.float32)


def _kept_exact(model: Any, dtype: torch.dtype) -> re.Pattern[str] | None:  # noqa: ANN401
    """Give what the names of those weights hold that the library has in float32 all the same."""
    names = [name.replace("*", ".*") for name in model._get_dtype_plan(dtype)]  # noqa: SLF001
    return re.compile("|".join(names)) if names else None
