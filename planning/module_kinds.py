"""Which module of a model a tensor belongs to, as the model's own code says."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModuleKinds:
    """What a model's own code says about its modules.

    Attributes:
        kinds: Kind by module name, of every module whose weight has two or more dimensions, in the
            model's order: ``Linear``, ``Embedding``, or the name of its class, such as ``Conv1D``.
        tied: Groups of parameter names that are one tensor.
        head: Name of the output head, where the model has one.
        prefix: What the base model's names start with inside the full model.
        renamed: The model's own name of every tensor whose name in the checkpoint is another.
        merged: Tensors, by their names in the checkpoint, that are turned into others while they
            are loaded, as the weights of experts are stacked.
        named_weights: Linear modules whose ``weight`` the model's initialization takes by name, so
            it must have one even where all values are loaded.
        peak_bytes: Resident peak of the process that looked; None where the table was asked.
    """

    kinds: dict[str, str]
    tied: list[list[str]] = field(default_factory=list)
    head: str | None = None
    prefix: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    merged: frozenset[str] = frozenset()
    named_weights: frozenset[str] = frozenset()
    peak_bytes: int | None = None

    def find(self, module: str) -> str | None:
        """Give the model's own name of a checkpoint's module, with or without the prefix."""
        module = self.renamed.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")
        return next((name for name in self.spellings(module) if name in self.kinds), None)

    def spellings(self, name: str) -> tuple[str, ...]:
        """Give the names that a module or tensor may have in the model, the likeliest first."""
        prefix = f"{self.prefix}."
        return name, prefix + name, name.removeprefix(prefix)
