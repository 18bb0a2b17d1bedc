"""Tables of choices: every choice by name is a row of a table, beside the code that it chooses.

A table provides the names that an option takes, its help, `hkmap list TABLE`, and the error for an unknown name. A row
is a function whose docstring begins with one line, or another object with a ``title``.
"""

from __future__ import annotations

import importlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hkmap.errors import ChoiceError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Row = TypeVar("Row")

#: Where each table is, under the name that `hkmap list` uses.
TABLES = {
    "formats": "hkmap.sources.formats:FORMATS",
    "bandwidths": "hkmap.maps.bandwidths:BANDWIDTHS",
    "edges": "hkmap.maps.boxes:EDGES",
    "poolings": "hkmap.maps.masks:POOLINGS",
    "normalisations": "hkmap.maps.resize:NORMALISATIONS",
    "similarities": "hkmap.maps.similarity:SIMILARITIES",
    "tools": "hkmap.maps.strokes:TOOLS",
    "decoys": "hkmap.stream.planting:DECOYS",
    "colours": "hkmap.report.colouring:COLOURS",
    "findings": "hkmap.report.oddities:ODDITIES",
    "architectures": "hkmap.networks.architectures:ARCHITECTURES",
    "stems": "hkmap.networks.resnet:STEMS",
    "gates": "hkmap.networks.abn:GATES",
    "exports": "hkmap.networks.export:EXPORTS",
    "fits": "hkmap.engine.inputs:FITS",
    "augmentations": "hkmap.engine.inputs:AUGMENTATIONS",
    "map_losses": "hkmap.engine.losses:MAP_LOSSES",
    "schedules": "hkmap.training.optimisation:SCHEDULES",
    "gamma_schedules": "hkmap.training.optimisation:GAMMA_SCHEDULES",
    "optimizers": "hkmap.training.optimisation:OPTIMIZERS",
    "updates": "hkmap.training.optimisation:UPDATES",
    "selections": "hkmap.training.optimisation:SELECTIONS",
    "precisions": "hkmap.training.optimisation:PRECISIONS",
    "recipes": "hkmap.training.recipes:RECIPES",
    "class_weights": "hkmap.training.optimisation:CLASS_WEIGHTS",
    "controls": "hkmap.engine.controls:CONTROLS",
    "logs": "hkmap.training.logs:LOGS",
    "explanations": "hkmap.evaluation.explain:EXPLANATIONS",
    "blurs": "hkmap.evaluation.curves:BLURS",
    "dtypes": "hkmap.evaluation.fast:DTYPES",
    "metrics": "hkmap.evaluation.metrics:METRICS",
    "orders": "hkmap.editor.ordering:ORDERS",
}


class Choices(Mapping[str, Row], Generic[Row]):
    """Rows by name, in order; messages call a row ``what`` ("bandwidth").

    ``group`` names the entry points ("hkmap.bandwidths") by which other packages add rows of a ``kind``; they cannot
    replace one of our rows, nor can `add`.

    >>> gates = Choices("gate", {"residual": lambda x, m: x * (1 + m), "product": lambda x, m: x * m})
    >>> gates["product"](2, 0.5)
    1.0
    >>> gates["prodct"]
    Traceback (most recent call last):
    hkmap.errors.ChoiceError: gate 'prodct' is unknown; did you mean 'product'? expected one of residual, product
    """

    def __init__(
        self, what: str, rows: Mapping[str, Row], *, group: str | None = None, kind: Any = Callable
    ) -> None:
        self.what = what
        self.group = group
        self.kind = kind
        self._rows: ChainMap[str, Row] = ChainMap({}, dict(rows))
        self._loaded: dict[str, Row] = {}

    def __getitem__(self, name: str) -> Row:
        if name in self._rows:
            return self._rows[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._rows, *self._added()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._added()

    def row(self, choice: str | Row) -> Row:
        """Return the row of a name, or the given row itself."""
        return self[choice] if isinstance(choice, str) else choice

    def add(self, name: str, row: Row) -> None:
        """Add a row for this process alone, or replace one that was added; raise ChoiceError for a name of ours."""
        if name in self._rows.parents:
            raise ChoiceError(f"{self.what} {name!r} is hkmap's own; choose another name for yours")
        self._rows[name] = row

    def check(self, *names: str) -> None:
        """Raise ChoiceError if a name is unknown, or its package cannot be imported."""
        for name in names:
            self[name]

    def describe(self) -> dict[str, str]:
        """Return each row's title or the first line of its docstring; if its package fails, the reason."""
        return {name: self._described(name) for name in self}

    def figures(self, name: str) -> dict[str, Any]:
        """Return what `hkmap list` says of a row beside its title."""
        return {}

    def unknown(self, name: object) -> ChoiceError:
        """Return the error for an unknown name."""
        near = get_close_matches(str(name), list(self), 1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        return ChoiceError(f"{self.what} {name!r} is unknown;{hint} expected one of {', '.join(self)}")

    def origin(self, name: str) -> str:
        """Return the distribution that a row comes from, "hkmap" or another; or "this process", for one of `add`."""
        if name in self._rows:
            return "hkmap" if name in self._rows.parents else "this process"
        point = self._added().get(name)
        return "hkmap" if point is None else point.dist.name if point.dist else point.module

    def _described(self, name: str) -> str:
        try:
            row = self[name]
        except ChoiceError as error:
            return str(error)
        return str(getattr(row, "title", row.__doc__)).partition("\n")[0]

    def _added(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # as slow to load as all of hkmap --help

        found = entry_points(group=self.group) if self.group else ()
        return {point.name: point for point in found if point.name not in self._rows}

    def _load(self, name: str) -> Row:
        point = self._added().get(name)
        if point is None:
            raise self.unknown(name)
        place = f'the {self.what} "{name}" ({point.value})'
        try:
            row: Row = point.load()
        except Exception as error:      # another package's code may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise ChoiceError(f"{place} cannot be imported ({reason}); mend or uninstall it") from error
        if not isinstance(row, self.kind):
            expected = f"{self.kind.__module__}.{self.kind.__qualname__}"
            raise ChoiceError(f"{place} is a {type(row).__name__}; expected a {expected}")
        return row


def table(name: str) -> Choices[Any]:
    """Import and return the table of that name in TABLES."""
    module, _, attribute = Choices("table", TABLES)[name].partition(":")
    found: Choices[Any] = getattr(importlib.import_module(module), attribute)
    return found
