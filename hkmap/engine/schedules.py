"""How the learning rate falls: the epoch, from 1, and the number of epochs → the factor of the rate."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from hkmap.choices import Choices

Schedule = Callable[[int, int], float | Fraction]


def step(epoch: int, epochs: int) -> Fraction:
    """A tenth after a half of the epochs, a hundredth after three quarters; the paper's.

    >>> [str(step(epoch, 4)) for epoch in (1, 2, 3, 4)]
    ['1', '1', '1/10', '1/100']
    """
    return Fraction(1, 10 ** sum(epoch > share * epochs for share in (0.5, 0.75)))


SCHEDULES: Choices[Schedule] = Choices("schedule", {"step": step})
