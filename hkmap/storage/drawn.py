"""What a filter drew for a record, before it is saved; drawn in any process, saved in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hkmap.maps.check import Map
from hkmap.records import Record, with_annotators
from hkmap.storage.mapfiles import MapWriter


class Drawn(NamedTuple):
    """A record, the map that it is to have, and what lies beside it: its weights, its annotators' maps by name."""

    record: Record
    map: Map
    weights: Map | None = None
    annotators: Mapping[str, Map] | None = None


def save_drawn(maps: MapWriter, drawn: Drawn | Record) -> Record:
    """Save what was drawn and return the record with its references; a record without a drawing, as it is.

    Raises MapError for what is no map, OutputError for a second record of the same id.
    """
    if not isinstance(drawn, Drawn):
        return drawn
    identifier = drawn.record["id"]
    saved = {**drawn.record, "map": maps.save(identifier, drawn.map)}
    if drawn.weights is not None:
        saved["weights"] = maps.save_weights(identifier, drawn.weights)
    people = drawn.annotators or {}
    return with_annotators(saved, {name: maps.save(identifier, own, name) for name, own in people.items()})
