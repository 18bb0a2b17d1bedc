"""What a sample must be before it enters a shard."""

from __future__ import annotations

from dataclasses import replace

from hkmap.errors import ImageError, RecordError
from hkmap.maps.check import Map, check_map
from hkmap.records import Record, frame_of
from hkmap.storage.hdf5 import refuse_two_sizes
from hkmap.storage.images import Pixels
from hkmap.storage.layout import Sample


def checked_sample(sample: Sample, size: tuple[int, ...]) -> Sample:
    """Return the sample with its maps checked, and those of its annotators in the order of their names.

    ``size`` is (height, width) of the maps before it, () where it has the first. Raises MapError, OutputError for a
    map of another size, and RecordError for weights or annotators' maps without a map.
    """
    place = f'record "{sample.record["id"]}"'
    if sample.map is None:
        if sample.weight is not None:
            raise RecordError(f"{place}: has weights but no map; weights say which cells of a map count")
        if sample.annotators:
            raise RecordError(f"{place}: has maps of single annotators but no map; add the map of all of them")
        return sample
    values = check_map(sample.map, f"{place}: map")
    refuse_two_sizes(values.shape, size or values.shape, place)
    weight = None if sample.weight is None else _checked(sample.weight, values.shape, f"{place}: weights")
    annotators = {
        name: _checked(own, values.shape, f'{place}: map of annotator "{name}"')
        for name, own in sorted(sample.annotators.items())
    }
    return replace(sample, map=values, weight=weight, annotators=annotators)


def refuse_turned(record: Record, pixels: Pixels) -> None:
    """Raise ImageError for a frame that lies the other way round than the image; another scale of it is all right."""
    if record.get("size") is None:
        return
    (width, height), (rows, columns) = frame_of(record), pixels.shape[:2]
    if _alike(width / height, rows / columns) and not _alike(width / height, columns / rows):
        raise ImageError(
            f'record "{record["id"]}": its size is {width}x{height} (width x height), but the image is '
            f"{columns}x{rows} once turned as its EXIF says; give the coordinates in the image as it is displayed"
        )


def _checked(values: Map, size: tuple[int, ...], place: str) -> Map:
    checked = check_map(values, place)
    refuse_two_sizes(checked.shape, size, place)
    return checked


def _alike(one: float, other: float) -> bool:
    return abs(one / other - 1) < 0.01      # a scaled frame is rounded to whole pixels
