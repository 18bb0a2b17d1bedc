"""Tables of choices: every choice by name is a row of a table, beside the code that it chooses.

From a table come the names that an option takes, its help, `hkmap list TABLE`, and the sentence that refuses an
unknown name. A row is a function, or another object, with a docstring; an alias of a row is no row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hkmap.errors import ChoiceError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Row = TypeVar("Row")

#: Every table, by the name that `hkmap list` gives it: where it is.
TABLES = {
    "formats": "hkmap.sources.formats:FORMATS",
    "bandwidths": "hkmap.maps.bandwidths:BANDWIDTHS",
    "edges": "hkmap.maps.boxes:EDGES",
    "poolings": "hkmap.maps.masks:POOLINGS",
    "normalisations": "hkmap.maps.resize:NORMALISATIONS",
    "similarities": "hkmap.maps.similarity:SIMILARITIES",
    "colours": "hkmap.report.colouring:COLOURS",
    "findings": "hkmap.report.oddities:ODDITIES",
    "architectures": "hkmap.engine.resnet:ARCHITECTURES",
    "stems": "hkmap.engine.resnet:STEMS",
    "gates": "hkmap.engine.abn:GATES",
    "fits": "hkmap.engine.inputs:FITS",
    "augmentations": "hkmap.engine.inputs:AUGMENTATIONS",
    "map_losses": "hkmap.engine.losses:MAP_LOSSES",
    "schedules": "hkmap.engine.schedules:SCHEDULES",
    "optimizers": "hkmap.engine.training:OPTIMIZERS",
    "updates": "hkmap.engine.training:UPDATES",
    "precisions": "hkmap.engine.training:PRECISIONS",
    "controls": "hkmap.engine.data:CONTROLS",
    "metrics": "hkmap.engine.metrics:METRICS",
}


class Choices(Mapping[str, Row], Generic[Row]):
    """Rows by their names, in order; ``what`` says in messages what one of them is ("bandwidth").

    ``group`` names the entry points by which other packages add rows ("hkmap.bandwidths"); a row of theirs is loaded
    when it is asked for, and never takes the name of one of ours.

    >>> gates = Choices("gate", {"residual": lambda x, m: x * (1 + m), "product": lambda x, m: x * m})
    >>> gates["product"](2, 0.5)
    1.0
    >>> gates["prodct"]
    Traceback (most recent call last):
    hkmap.errors.ChoiceError: gate 'prodct' is unknown; did you mean 'product'? expected one of residual, product
    """

    def __init__(self, what: str, rows: Mapping[str, Row], *, group: str | None = None) -> None:
        self.what = what
        self.group = group
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Row:
        if name in self._rows:
            return self._rows[name]
        if not isinstance(name, str) or name not in self._added:
            raise self.unknown(name)
        try:
            row: Row = self._added[name].load()
        except Exception as error:      # another package's code may fail in any way
            place = f"{self.what} {name!r} of {self._added[name].value}"
            raise ChoiceError(f"{place} cannot be loaded ({error}); mend or uninstall it") from error
        return row

    def __iter__(self) -> Iterator[str]:
        return iter((*self._rows, *self._added))

    def __len__(self) -> int:
        return len(self._rows) + len(self._added)

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._added

    def row(self, choice: str | Callable[..., object]) -> Row:
        """Return the row of a name, or a function that was given in the place of one."""
        return self[choice] if isinstance(choice, str) else choice  # type: ignore[return-value]

    def check(self, names: Iterable[str]) -> None:
        """Raise ChoiceError where one of the names is unknown."""
        for name in names:
            if name not in self:
                raise self.unknown(name)

    def describe(self) -> dict[str, str]:
        """Return the first line of each row's docstring."""
        return {name: (self[name].__doc__ or "").strip().partition("\n")[0] for name in self}

    def unknown(self, name: object) -> ChoiceError:
        """Return the error for a name that is none of the rows."""
        near = get_close_matches(str(name), list(self), 1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        return ChoiceError(f"{self.what} {name!r} is unknown;{hint} expected one of {', '.join(self)}")

    @cached_property
    def _added(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # as slow to load as all of hkmap --help

        found = entry_points(group=self.group) if self.group else ()
        return {point.name: point for point in found if point.name not in self._rows}


def table(name: str) -> Choices[Any]:
    """Return the table of that name in TABLES; its module is imported now."""
    if name not in TABLES:
        raise Choices("table", TABLES).unknown(name)
    module, _, attribute = TABLES[name].partition(":")
    found: Choices[Any] = getattr(importlib.import_module(module), attribute)
    return found


def origin(choices: Choices[Any], name: str) -> str:
    """Return the distribution that a row of ``choices`` comes from: "hkmap", or the name of another."""
    if name in choices._rows:
        return "hkmap"
    from importlib.metadata import entry_points

    (point, *_) = entry_points(group=choices.group or "", name=name)
    return point.dist.name if point.dist else point.module
