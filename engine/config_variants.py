"""Configs of one model class that differ in what could change the model.

A path names a config's member; a dot leads into a member that is a config too.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]

#: Members that count layers.
_COUNT = re.compile(r"(num_|n_)?(encoder_|decoder_|hidden_)?(layers?|depth)")
#: Lists as long as the model is deep, or naming its layers; left out, they are made anew.
_PER_LAYER = re.compile("layer|stage|out_features|out_indices")
#: Members that matter in any config, whether or not its class names them.
_TIES = ("tie_word_embeddings", "tie_encoder_decoder")


def open_config(model_class: Any) -> tuple[Config, list[str]]:  # noqa: ANN401 - of transformers
    """Give a model class's default config, as its config.json would be, and what counts layers.

    Args:
        model_class: A model class of transformers.

    Returns:
        The config, and the paths of its numbers of layers.
    """
    default = json.loads(model_class.config_class().to_json_string(use_diff=False))
    config = _without_lists_of_layers(default)
    found = members(config)
    return config, [p for p, v in found if type(v) is int and _COUNT.fullmatch(last_of(p))]


def variants(config: Config) -> Iterator[Config]:
    """Yield the config with each yes-or-no member turned over, and every way to tie weights."""
    for path, value in members(config):
        if isinstance(value, bool):
            yield replaced(config, path, not value)
    for path in tie_paths(config):
        yield from (replaced(config, path, value) for value in (False, True))


def tie_paths(config: Config) -> list[str]:
    """Give the paths of the members that may decide which weights are one tensor."""
    objects = ["", *(f"{path}." for path, value in config.items() if isinstance(value, dict))]
    return [f"{owner}{tie}" for tie in _TIES for owner in objects if "config" in owner or not owner]


def members(config: Config, parent: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every member that is no object, with its path."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from members(value, f"{parent}{key}.")
        else:
            yield f"{parent}{key}", value


def replaced(config: Config, path: str, value: object) -> Config:
    """Give a copy with another value at a path."""
    key, _, rest = path.partition(".")
    return {**config, key: replaced(config[key], rest, value) if rest else value}


def _without_lists_of_layers(config: Config) -> Config:
    """Leave out what must be as long as the model is deep; the config's class makes it anew."""
    return {
        key: _without_lists_of_layers(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not (isinstance(value, list) and _PER_LAYER.search(key))
    }


def last_of(path: str) -> str:
    """Give the name of the member itself."""
    return path.rpartition(".")[2]
