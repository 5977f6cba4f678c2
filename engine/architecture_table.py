"""Makes the table of known architectures.

    python -m engine.architecture_table > planning/architectures.jsonl

Every class of the model types below is built on the meta device under many configs: other numbers
of layers, and every yes-or-no member turned over. A class goes into the table only if what the
models say follows from the names of their weights, the numbers of layers and at most one member
that ties weights; the others stay with `engine.inspection`.
"""

import json
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.config_variants import (
    Config,
    last_of,
    members,
    open_config,
    replaced,
    tie_paths,
    variants,
)
from engine.inspection import describe
from planning.architectures import Architecture
from planning.module_kinds import ModuleKinds

#: Decoders, encoders of text, both together, models of images, of sound.
MODEL_TYPES = """
apertus arcee bloom codegen cohere cohere2 ernie4_5 exaone4 falcon gemma gemma2 gemma3 gemma3_text
glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite helium llama mamba mistral
modernbert-decoder mpt nemotron olmo olmo2 olmo3 opt phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm
starcoder2 xglm
albert bert big_bird camembert deberta deberta-v2 distilbert electra ernie eurobert gte ibert
layoutlm longformer luke megatron-bert mobilebert modernbert mpnet nomic_bert rembert roberta
roberta-prelayernorm roformer squeezebert xlm-roberta xlm-roberta-xl xlnet
bart bigbird_pegasus blenderbot led longt5 m2m_100 marian mbart mt5 pegasus t5 umt5
beit blip chinese_clip clip clip_text_model clip_vision_model convnext convnextv2 deit dinov2
dinov2_with_registers dinov3_vit dpt idefics3 llava llava_next paligemma pixtral qwen2_5_vl
qwen2_vl qwen3_vl resnet segformer siglip siglip2 siglip_text_model siglip_vision_model smolvlm
swin swinv2 timesformer videomae vilt vit vit_mae vit_msn vivit yolos
audio-spectrogram-transformer clap hubert moonshine sew speech_to_text speecht5 unispeech
unispeech-sat vits wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper
"""

_OUT = re.compile(r"Pre[tT]rained|Backbone$")
_FEW = 2


class _UnfitError(Exception):
    """What a class's models say does not follow from what the table can hold."""


@dataclass(frozen=True)
class _Model:
    """What a model of one config says.

    Attributes:
        config: The config.
        weights: The names of its weights of two or more dimensions, in order.
        kinds: The rest.
    """

    config: Config
    weights: list[str]
    kinds: ModuleKinds


def make_entry(model_class: Any) -> Architecture:  # noqa: ANN401 - a class of transformers
    """Make a class's entry in the table.

    Args:
        model_class: The class.

    Returns:
        The entry: whatever config was tried, it says what the model says or does not fit it.

    Raises:
        _UnfitError: No entry does that.
    """
    default, counts = open_config(model_class)
    base = default
    for path in counts:
        base = replaced(base, path, _FEW)
    small = _build(model_class, base)
    longer = {p: _build(model_class, replaced(base, p, _FEW + 1)) for p in counts}
    entry = _with_ties(_entry(small, _find_stacks(small, longer)), model_class, small)
    for model in (small, *longer.values()):
        if set(model.weights) != entry.weights(model.config):
            raise _UnfitError("its names do not follow from the numbers of layers")
        _check(entry, model)
    for config in (default, *variants(base)):
        try:
            model = _build(model_class, config)
        except _UnfitError:
            raise
        except Exception:  # noqa: BLE001, S112 - whatever a class says to a config that is none
            continue
        _check(entry, model)
    return entry


def _build(model_class: Any, config: Config) -> _Model:  # noqa: ANN401
    import torch  # noqa: PLC0415 - where the table is only checked for its version, none is needed

    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(json.loads(json.dumps(config))))
    stored = model.state_dict()
    facts = describe(model, list(stored))
    if facts["renamed"] or facts["merged"]:
        raise _UnfitError("loading renames or merges its tensors")
    weights = [
        name
        for name, tensor in stored.items()
        if tensor.is_floating_point() and tensor.ndim > 1 and not name.endswith("bias")
    ]
    sets = {key: frozenset(facts[key]) for key in ("merged", "named_weights")}
    return _Model(config, weights, ModuleKinds(**(facts | sets)))


def _check(entry: Architecture, model: _Model) -> None:
    """Check that an entry that a checkpoint of the model fits says what the model says."""
    said = entry.module_kinds(model.config)
    if said is None or entry.weights(model.config) != set(model.weights):
        return
    if said != model.kinds or list(said.kinds) != list(model.kinds.kinds):
        raise _UnfitError("equal names mean something else under another config")


def _entry(small: _Model, stacks: dict[str, str]) -> Architecture:
    kinds = small.kinds
    modules = {f"{module}.weight" for module in kinds.kinds}
    tied = [list(group) for group in kinds.tied]
    if any(_stacks_of(name, stacks) for group in tied for name in group):
        raise _UnfitError("it ties weights inside of layers")
    types = {p: v for p, v in members(small.config) if last_of(p) == "model_type"}
    return Architecture(
        model_types=types,
        prefix=kinds.prefix,
        head=kinds.head,
        stacks=stacks,
        kinds={_pattern(n, stacks, kinds.kinds): kind for n, kind in kinds.kinds.items()},
        parameters=_patterns([n for n in small.weights if n not in modules], stacks),
        named_weights=_patterns(sorted(kinds.named_weights), stacks),
        tie_key=None,
        is_tied_by_default=False,
        tied=[tied, tied],
    )


def _with_ties(entry: Architecture, model_class: Any, small: _Model) -> Architecture:  # noqa: ANN401
    """Add the member that decides what is tied, if there is one."""
    for path in tie_paths(small.config):
        untied, tied = (_build(model_class, replaced(small.config, path, v)) for v in (False, True))
        if untied.kinds.tied != tied.kinds.tied and untied.weights == tied.weights:
            return replace(
                entry,
                tie_key=path,
                is_tied_by_default=small.kinds.tied == tied.kinds.tied,
                tied=[untied.kinds.tied, tied.kinds.tied],
            )
    return entry


def _find_stacks(small: _Model, longer: dict[str, _Model]) -> dict[str, str]:
    """Say which lists of layers each count is the length of."""
    stacks: dict[str, str] = {}
    for path, model in longer.items():
        before, after = _indices(small.weights), _indices(model.weights)
        for parent in before:
            if after.get(parent) == before[parent]:
                continue
            if before[parent] != set(range(_FEW)) or after.get(parent) != set(range(_FEW + 1)):
                raise _UnfitError(f"{parent} does not have as many layers as {path} says")
            if stacks.setdefault(parent, path) != path:
                raise _UnfitError(f"{parent} has its length from two members")
    return stacks


def _indices(names: list[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in names:
        for match in re.finditer(r"\.(\d+)(?=\.|$)", name):
            found.setdefault(name[: match.start()], set()).add(int(match[1]))
    return found


def _patterns(names: Collection[str], stacks: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(_pattern(name, stacks, names) for name in names))


def _pattern(name: str, stacks: dict[str, str], names: Collection[str]) -> str:
    inside = _stacks_of(name, stacks)
    if not inside:
        return name
    if len(inside) > 1:
        raise _UnfitError("its layers have layers")
    layer, dot, rest = name[len(inside[0]) + 1 :].partition(".")
    is_first_alone = layer == "0" and f"{inside[0]}.1{dot}{rest}" not in names
    return f"{inside[0]}.#{layer if is_first_alone else ''}{dot}{rest}"


def _stacks_of(name: str, stacks: dict[str, str]) -> list[str]:
    return [stack for stack in stacks if re.match(rf"{re.escape(stack)}\.\d+(\.|$)", name)]


def _classes(transformers: Any) -> Iterator[Any]:  # noqa: ANN401
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415

    of_config: dict[Any, list[Any]] = {}
    for name in dir(transformers):
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            config_class = found.config_class  # type: ignore[attr-defined] # not seen by mypy
            of_config.setdefault(config_class, []).append(found)
    for model_type in MODEL_TYPES.split():
        yield from of_config.get(CONFIG_MAPPING[model_type], [])


def main() -> None:
    """Write the table to standard output, and to standard error why each other class is out."""
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    entries: dict[str, Architecture] = {}
    for model_class in _classes(transformers):
        name = model_class.__name__
        if _OUT.search(name):
            continue
        try:
            entries[name] = make_entry(model_class)
        except Exception as error:  # noqa: BLE001 - a class that cannot be asked is left out
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n"[:300])
    sys.stdout.write(json.dumps({"transformers": transformers.__version__}) + "\n")
    for name in sorted(entries):
        sys.stdout.write(json.dumps({"name": name, **asdict(entries[name])}) + "\n")


if __name__ == "__main__":
    main()
