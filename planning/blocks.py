"""The blocks of a model, as its modules' names tell them: those with a number of their own."""


def block_of(name: str) -> str | None:
    """Give the block that a module or tensor lies in.

    Args:
        name: Its name in the model, such as ``model.layers.3.mlp.up_proj``.

    Returns:
        The name up to its first number, such as ``model.layers.3``; None where there is no number,
        as in embeddings and heads.
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])
