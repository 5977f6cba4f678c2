"""What a seed decides: the jobs that clients want, and what is done to the machine meanwhile."""

import random
from dataclasses import dataclass
from typing import Literal

from benchmarks.chaos.materials import MODELS, RECIPES

FaultKind = Literal[
    "runner", "worker", "supervisor", "template",
    "redis", "wipe", "loss", "zombie", "service", "submit", "clock",
]  # fmt: skip

#: How often each happens in 2,000 jobs. The first four are SIGKILLs of what works on a job.
FAULTS: dict[FaultKind, int] = {
    "runner": 80,
    "worker": 60,
    "supervisor": 40,
    "template": 20,
    "redis": 20,
    "wipe": 4,
    "loss": 1,
    "zombie": 20,
    "service": 12,
    "submit": 8,
    "clock": 20,
}
_FULL_LENGTH = 2000
#: Work that is done again from its start: most jobs, as equal ones would be answered at once.
_UNCACHED_SHARE = 0.85
_CANCELLED_SHARE = 0.12
_CUT_UPLOAD_SHARE = 0.03
_CUT_DOWNLOAD_SHARE = 0.15
#: Doorbells that are lost, and as many that come twice.
DOORBELL_SHARE = 0.05


@dataclass(frozen=True)
class Wish:
    """A job that a client wants.

    Attributes:
        number: Tells it from the others; in its key and its label.
        model: Name of its model; "" for one of its own, which no other job has.
        recipe: Name of its recipe.
        uses_cache: Whether an equal job's artifact will do.
        cancel_after: Seconds from its acceptance to its cancel; None where it is wanted.
        cuts_download: Whether the first download breaks off.
    """

    number: int
    model: str
    recipe: str
    uses_cache: bool
    cancel_after: float | None
    cuts_download: bool


@dataclass(frozen=True)
class Fault:
    """Something that is done to the machine.

    Attributes:
        after: How many jobs have ended when it is.
        kind: What is killed, stopped or emptied.
        seconds: How long Redis stays away, or how much longer than its lease a zombie sleeps
            or a clock is wrong.
        choice: Picks among several that can be hit, in [0, 1).
    """

    after: int
    kind: FaultKind
    seconds: float
    choice: float


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        seed: Of everything that is drawn.
        wishes: The jobs, in the order in which clients take them up.
        faults: In the order in which they are done.
    """

    seed: int
    wishes: tuple[Wish, ...]
    faults: tuple[Fault, ...]


def make_plan(seed: int, jobs: int) -> Plan:
    """Draw a run.

    Args:
        seed: The same one gives the same plan.
        jobs: How many jobs; the number of faults is proportional, and each kind happens.

    Returns:
        The plan.
    """
    chance = random.Random(seed)
    wishes = tuple(_draw_wish(chance, number) for number in range(jobs))
    kinds = [
        kind
        for kind, times in FAULTS.items()
        for _ in range(max(1, round(times * jobs / _FULL_LENGTH)))
    ]
    chance.shuffle(kinds)
    # The first and the last jobs are left in peace, so that there is work whenever one comes.
    places = sorted(
        chance.randrange(jobs // 20, max(jobs // 20 + 1, jobs * 9 // 10)) for _ in kinds
    )
    faults = tuple(
        Fault(place, kind, chance.uniform(0.1, 2.5), chance.random())
        for place, kind in zip(places, kinds, strict=True)
    )
    return Plan(seed, wishes, faults)


def _draw_wish(chance: random.Random, number: int) -> Wish:
    has_own_model = chance.random() < _CUT_UPLOAD_SHARE
    is_cancelled = chance.random() < _CANCELLED_SHARE
    return Wish(
        number=number,
        model="" if has_own_model else chance.choice(list(MODELS)),
        recipe=chance.choice(list(RECIPES)),
        uses_cache=chance.random() >= _UNCACHED_SHARE,
        cancel_after=chance.choice([0.0, chance.uniform(0, 3)]) if is_cancelled else None,
        cuts_download=chance.random() < _CUT_DOWNLOAD_SHARE,
    )
