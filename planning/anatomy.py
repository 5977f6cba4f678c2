"""Where a family of architectures has its heads, channels and layers, as values.

Modules are named by what follows the number of a layer, so a checkpoint fits with or without the
prefix of its base model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Channels:
    """The channels of an MLP.

    Attributes:
        size_key: The member of the config that counts them.
        outputs: Modules whose outputs they are; where names differ, one choice after the other.
        inputs: The module whose inputs they are.
        fused: How many outputs belong to each channel, one behind all others' in the same module.
        beside: Modules beside these whose sizes do not depend on them.
    """

    size_key: str
    outputs: tuple[tuple[str, ...], ...]
    inputs: str
    fused: int = 1
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadKeys:
    """What a config says of heads.

    Attributes:
        number: The member that counts them.
        groups: The member that counts keys and values; None where no heads share any.
        size: The member that tells how many values a head has.
    """

    number: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    size: str = "head_dim"


@dataclass(frozen=True)
class Heads:
    """The heads of an attention, each with the keys and values that it shares with others.

    Attributes:
        query: The module that makes queries; or queries, keys and values, where they are fused.
        key: The module that makes keys; None where they are fused.
        value: The module that makes values; None where they are fused.
        output: The module that takes what all heads give.
        beside: Modules beside these whose sizes do not depend on the number of heads.
        fills_hidden: Whether the config's class refuses a hidden size that is no multiple of the
            number of heads.
        keys: What the config says of them.
        shared_bias: The module in the first layer whose weight has a column for each head of every
            layer, so that all keep the same ones; None where there is none.
    """

    query: str
    key: str | None
    value: str | None
    output: str
    beside: tuple[str, ...] = ()
    fills_hidden: bool = False
    keys: HeadKeys = HeadKeys()
    shared_bias: str | None = None


@dataclass(frozen=True)
class Stack:
    """A list of layers.

    Attributes:
        path: The end of its name, before the number of a layer.
        channels: Of its MLP.
        heads: Of its attentions, or why they stay.
        count_keys: The members of the config that count its layers, the one to write first.
    """

    path: str
    channels: Channels
    heads: tuple[Heads, ...] | str
    count_keys: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Architectures whose layers have the same names.

    Attributes:
        model_types: Their names in configs.
        stacks: Their lists of layers.
        is_transposed: Whether weights are [in, out], as GPT-2's are.
        ordered_by: What makes a layer depend on its number: a member of the config that has to be
            true for that, or None, and the list in the config that tells each layer's part in it
            instead, or None where there is none.
        layers_stay: Why no layer can be left out; None where some can.
    """

    model_types: frozenset[str]
    stacks: tuple[Stack, ...]
    is_transposed: bool = False
    ordered_by: tuple[tuple[str | None, str | None], ...] = ()
    layers_stay: str | None = None
