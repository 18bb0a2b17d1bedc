"""What to edit next: a score of each record, and the orders that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hkmap.choices import Choices
from hkmap.editor.session import EditSession
from hkmap.errors import HkmapError, RecordError
from hkmap.maps.certainty import Weighted, at_one_size
from hkmap.maps.similarity import iou
from hkmap.records import attempt, reference_of
from hkmap.stream.editing import HUMAN, PREDICTED

Score = float | None        # None: a record of which it says nothing


def given(session: EditSession, number: int) -> Score:
    """In the order of the stream."""
    return 0.0


def confidence(session: EditSession, number: int) -> Score:
    """Lowest confidence first: the record's, or else the probability of the class that the network predicts."""
    told = session.records[number].get("confidence")
    if isinstance(told, int | float):
        return float(told)
    return None if session.network is None else float(session.seen(number).before.max())


def disagreement(session: EditSession, number: int) -> Score:
    """Largest disagreement of attention and human map first: 1 - IoU of their highest 10 % of the cells.

    The attention is the record's, or else the network's; the larger of the two maps is averaged to the smaller one's
    size. Nothing is said of a record without a human map, or with one of zeros.
    """
    if HUMAN not in session.starts(number) or PREDICTED not in session.starts(number):
        return None
    human, attention = session.base(number, HUMAN), session.base(number, PREDICTED)
    first, second = (one.map.reshape(1, -1).astype(np.float64) for one in at_one_size([human, attention]))
    return 1 - float(iou(first, second)[0]) if first.any() else None


def edit_response(session: EditSession, number: int) -> Score:
    """Largest response to an edit first: how far the answer moves when the human map replaces the network's own.

    It is the total variation distance between the probabilities, half the sum of their absolute differences, as in the
    metric of that name. Where there is no human map, the map is erased (zeros).
    """
    if session.network is None:
        return None
    erased = Weighted(np.zeros(session.network.model.map_size, np.float32), None)
    edited = session.base(number, HUMAN) if reference_of(session.records[number], HUMAN) else erased
    return float(np.abs(session.answer(number, edited) - session.seen(number).before).sum() / 2)


ORDERS = Choices("order", {
    "given": given, "confidence": confidence, "disagreement": disagreement, "edit_response": edit_response,
})

_MISSING = {
    "confidence": "no record tells the network's confidence; give --from RUN, or records of `hkmap predict`",
    "disagreement": "no record has both a human map that is not zero and a map of the network; give records with "
                    "maps, and --from RUN, or another order",
    "edit_response": "a network has to answer; give --from RUN, or another order",
}


def scores(
    session: EditSession, names: Sequence[str], advance: Callable[[], object] = lambda: None
) -> dict[str, list[Score]]:
    """Return the scores of all records in each order of ``names``; ``advance`` is called after each record.

    None where a record lacks what the score is of, or cannot be read: who comes to it is told why.
    """
    rows = {name: ORDERS[name] for name in names}
    found: dict[str, list[Score]] = {name: [] for name in rows}
    for number in range(len(session.records)):      # the network sees each image once, for all orders
        for name, row in rows.items():
            value = attempt(partial(row, session), number)
            found[name].append(None if isinstance(value, HkmapError) else value)
        advance()
    return found


def order_by(name: str, values: Sequence[Score]) -> list[int]:
    """Return the numbers of records by their scores; those that tie keep their order, those without one come last.

    >>> order_by("confidence", [0.9, None, 0.2, 0.9]), order_by("edit_response", [0.9, None, 0.2, 0.9])
    ([2, 0, 3, 1], [0, 3, 2, 1])
    """
    sign = 1 if name == "confidence" else -1
    places = [(value is None, sign * (value or 0)) for value in values]
    return sorted(range(len(values)), key=places.__getitem__)


def orders(
    session: EditSession, asked: Sequence[str] = (), advance: Callable[[], object] = lambda: None
) -> dict[str, list[int]]:
    """Return the orders that were asked for, and those that the records tell at no cost, by name.

    Raise RecordError where nothing is known of any record that an order which was asked for goes by.
    """
    ORDERS.check(*asked)
    told = {"given", *asked} | ({"confidence"} if all("confidence" in record for record in session.records) else set())
    found = scores(session, [name for name in ORDERS if name in told], advance)
    for name in asked:
        if all(value is None for value in found[name]):
            raise RecordError(f"--order {name}: {_MISSING[name]}")
    return {name: order_by(name, values) for name, values in found.items()}
