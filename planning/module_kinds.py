"""Which module of a model a tensor belongs to, as the model's own code says."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModuleKinds:
    """What a model's own code says about its modules.

    Attributes:
        kinds: Kind by module name: ``Linear``, ``Conv1D``, ``Conv2d``, ``ConvTranspose1d``,
            ``Embedding`` and so on; the class name for every other module with parameters.
        tied: Groups of parameter names that are one tensor.
        head: Name of the output head, where the model has one.
        prefix: What the base model's names start with inside the full model.
        renamed: The model's own name of every tensor whose name in the checkpoint is another.
        merged: Tensors, by their names in the checkpoint, that are turned into others while they
            are loaded, as the weights of experts are stacked.
        named_weights: Linear modules whose ``weight`` the model's initialization takes by name, so
            it must have one even where all values are loaded.
        peak_bytes: Resident peak of the process that looked.
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
        prefix = f"{self.prefix}."
        for name in (module, prefix + module, module.removeprefix(prefix)):
            if name in self.kinds:
                return name
        return None
