"""The curves of a training, laid out for the report's page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.training import Training

#: The area of a drawing, in its own units.
WIDTH, HEIGHT = 960.0, 180.0


@dataclass(frozen=True)
class Line:
    """One line of a drawing.

    Attributes:
        kind: `before` or `after`, which chooses its colour.
        points: As an SVG polyline takes them.
    """

    kind: str
    points: str


@dataclass(frozen=True)
class Curve:
    """Values over the steps of a training.

    Attributes:
        title: What it shows.
        note: What to know when reading it.
        lowest: Of the values, as people read it.
        highest: The same.
        lines: The lines.
    """

    title: str
    note: str
    lowest: str
    highest: str
    lines: tuple[Line, ...]


def draw_curves(
    training: Training | None, human_bytes: Callable[[float], str]
) -> tuple[Curve, ...]:
    """Lay out how a training went.

    Args:
        training: What the report says of it; None draws nothing.
        human_bytes: Writes a size as people do.

    Returns:
        The loss and the memory over the steps; none of fewer than two steps.
    """
    if training is None or len(training.losses) < 2:
        return ()
    losses = [(float(point.step), point.loss) for point in training.losses]
    looks = [(float(look.step), look.loss) for look in training.looks]
    memory = [(float(point.step), float(point.resident_bytes)) for point in training.losses]
    note = f"Of {training.steps} steps of {training.batch_size} rows, in nats."
    if looks:
        note += f" In the other colour, on {training.held_out_rows} rows that are held out."
    lines = [("after", losses), *([("before", looks)] if len(looks) > 1 else [])]
    return (
        _curve("Loss", note, lines, "{:.4g}".format),
        _curve(
            "Memory while training",
            "Resident memory of the process after each step.",
            [("after", memory)],
            human_bytes,
            least=0.0,
        ),
    )


def _curve(
    title: str,
    note: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    write: Callable[[float], str],
    least: float | None = None,
) -> Curve:
    steps = [step for _, points in lines for step, _ in points]
    values = [value for _, points in lines for _, value in points]
    low = min(values) if least is None else least
    across = max(steps) - min(steps) or 1.0
    high = max(values) - low or 1.0
    drawn = tuple(
        Line(
            kind,
            " ".join(
                f"{(step - min(steps)) / across * WIDTH:.1f},"
                f"{HEIGHT - (value - low) / high * HEIGHT:.1f}"
                for step, value in points
            ),
        )
        for kind, points in lines
    )
    return Curve(title, note, write(low), write(max(values)), drawn)
