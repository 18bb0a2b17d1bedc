"""What a sample must be before it enters a shard."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hkmap.errors import ImageError, RecordError
from hkmap.maps.check import Map, check_map
from hkmap.maps.views import WHOLE
from hkmap.maps.warps import view_image
from hkmap.records import Record, dump_record, frame_of
from hkmap.storage.hdf5 import refuse_two_sizes
from hkmap.storage.images import Pixels
from hkmap.storage.layout import Sample, checksum


class Ready(NamedTuple):
    """A sample that may enter a shard, its record as JSON, and the checksum of both."""

    sample: Sample
    text: bytes
    checksum: int


def ready_sample(sample: Sample, pixel_size: tuple[int, int] | None = None) -> Ready:
    """Check a sample as far as it can be without those before it, its image decoded; this may be done in any thread.

    With ``pixel_size`` = (height, width) its image becomes pixels of this size, the whole image squashed into it: area
    averages where it shrinks, bilinear where it grows, as the engine sees it; without it, a file.
    """
    record = sample.record
    text = dump_record(record).rstrip(b"\n")
    pixels = sample.image(f'record "{record["id"]}": image {record.get("image", "")}')
    refuse_turned(record, pixels)
    stored = checked_sample(sample)
    if pixel_size is not None:
        squashed = view_image(pixels, WHOLE, pixel_size)
        stored = replace(stored, image_bytes=squashed.tobytes(), pixel_size=pixel_size)
    elif sample.pixel_size is not None:
        stored = replace(stored, image_bytes=sample.image_file(), pixel_size=None)
    return Ready(stored, text, checksum(stored, text))


def checked_sample(sample: Sample) -> Sample:
    """Return the sample with its maps checked, and those of its annotators in the order of their names.

    Raises MapError, OutputError for maps of two sizes, and RecordError for weights or annotators' maps without a map.
    """
    place = f'record "{sample.record["id"]}"'
    if sample.map is None:
        if sample.weight is not None:
            raise RecordError(f"{place}: has weights but no map; weights say which cells of a map count")
        if sample.annotators:
            raise RecordError(f"{place}: has maps of single annotators but no map; add the map of all of them")
        return sample
    values = check_map(sample.map, f"{place}: map")
    weight = None if sample.weight is None else _checked(sample.weight, values.shape, f"{place}: weights")
    annotators = {
        name: _checked(own, values.shape, f'{place}: map of annotator "{name}"')
        for name, own in sorted(sample.annotators.items())
    }
    return replace(sample, map=values, weight=weight, annotators=annotators)


def labelled_record(sample: Sample) -> Record:
    """Return a shard's record with its label; one of another writer may have it in the column alone."""
    if sample.label < 0 or sample.record.get("label") is not None:
        return sample.record
    return {**sample.record, "label": sample.label}


def given_weight(sample: Sample) -> Map | None:
    """Return the weights a record came with; the others in a shard with weights have 1 everywhere."""
    if sample.weight is None or (not sample.record.get("weights") and (sample.weight == 1).all()):
        return None
    return sample.weight


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
