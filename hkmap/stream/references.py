"""Read what a record refers to: a file, or a row of a shard (``train.h5#17``) or of maps (``maps.h5#17``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hkmap.errors import ImageError, MapError, RecordError, ShardError
from hkmap.files.images import Pixels, decode_image, file_bytes, image_size
from hkmap.files.maps import load_map_file, load_map_row
from hkmap.files.references import split_annotator, split_row
from hkmap.maps.check import Map, check_map
from hkmap.records import Record, annotator_maps_of, frame_of, reference_of

ANNOTATIONS = ("bubbles", "points", "boxes", "polygons", "lines", "masks", "unknown", "dont_look")

if TYPE_CHECKING:
    from hkmap.shards.layout import Sample


def image_bytes(reference: str) -> bytes:
    """Return the encoded image at ``reference``: a path, or a row of a shard ("train.h5#17"), pixels as a PNG.

    Raises ImageError if it cannot be read, and ShardError if the shard is damaged.
    """
    row = split_row(reference)
    return file_bytes(Path(reference)) if row is None else _sample(reference, *row).image_file()


def read_image(reference: str) -> Pixels:
    """Decode the image at ``reference``; (height, width, 3) RGB as displayed."""
    row = split_row(reference)
    if row is None:
        return decode_image(file_bytes(Path(reference)), reference)
    return _sample(reference, *row).image(reference)


def image_frame(record: Record) -> tuple[int, int]:
    """Return (width, height) of the record's image, from the record or else from the image's header."""
    if record.get("size") is not None:
        return frame_of(record)
    image = reference_of(record, "image")
    if image is None:
        raise RecordError(f'record "{record["id"]}": has neither size nor image; expected one, to compare its masks')
    return image_size(Path(image)) if split_row(image) is None else frame_beside(record, image, read_image(image))


def frame_beside(record: Record, reference: str, image: Pixels) -> tuple[int, int]:
    """Return (width, height) of the record's coordinates and masks: its size, else that of its ``image``.

    ``reference`` is where the image was read. Raises RecordError for coordinates in the frame of an image that a shard
    holds in another size: what that frame was, nobody knows.
    """
    if record.get("size") is not None:
        return frame_of(record)
    if is_scaled(reference) and (annotated := [key for key in ANNOTATIONS if record.get(key)]):
        raise RecordError(
            f'record "{record["id"]}": {annotated[0]} without a size, beside an image that was scaled when it was '
            "packed; expected the size of the image before; add it, and pack again"
        )
    return image.shape[1], image.shape[0]


def is_scaled(reference: str) -> bool:
    """Whether it is a row of a shard of pixels (pack --store pixels), whose images all have the shard's size."""
    row = split_row(reference)
    if row is None:
        return False
    from hkmap.shards.reader import open_shard  # h5py is slow to load

    return open_shard(row[0]).pixel_size is not None


def load_map(reference: str) -> Map:
    """Load and check the map at ``reference``: a .npy or grey .png file, "FILE.h5#ROW", or "SHARD.h5#ROW@ANNOTATOR".

    Raises MapError.
    """
    annotator = split_annotator(reference)
    return _load(reference, "map") if annotator is None else _load_annotator(reference, *annotator)


def load_certainty(reference: str) -> Map:
    """Like load_map, but a row of a shard gives the certainty of that row's map, or its map where it has none."""
    return _load(reference, "certainty")


def load_certainty_of(record: Record, values: Map) -> Map | None:
    """Load the certainty that the record refers to, None where it has none.

    Raises RecordError or MapError, the latter also where it is not as large as ``values``, the record's map.
    """
    reference = reference_of(record, "certainty")
    if reference is None:
        return None
    certainty = load_certainty(reference)
    if certainty.shape != values.shape:
        raise MapError(
            f'record "{record["id"]}": a certainty of {certainty.shape} beside a map of {values.shape}, expected the '
            "same (height, width); make it again with `hkmap certainty`"
        )
    return certainty


def load_annotators(record: Record) -> dict[str, Map]:
    """Load the maps of single annotators that the record refers to, by their names; raise RecordError or MapError."""
    return {name: load_map(reference) for name, reference in annotator_maps_of(record).items()}


def _load(reference: str, key: str) -> Map:
    row = split_row(reference)
    if row is None:
        return load_map_file(Path(reference))
    from hkmap.files.hdf5 import open_columns  # h5py is slow to load

    path, index = row
    try:
        file = open_columns(path)
        if "has_map" not in file.by_name:
            return load_map_row(file, index)
        sample = _sample(reference, path, index)
    except (ImageError, ShardError) as error:
        raise MapError(str(error)) from error
    values = sample.certainty if key == "certainty" and sample.certainty is not None else sample.map
    if values is None:
        raise MapError(f"{reference}: this record of the shard has no map")
    return check_map(values, reference)


def _load_annotator(reference: str, path: Path, row: int, name: str) -> Map:
    try:
        annotators = _sample(reference, path, row).annotators
    except (ImageError, ShardError) as error:
        raise MapError(str(error)) from error
    if name not in annotators:
        known = ", ".join(annotators) or "none"
        raise MapError(f'{reference}: record {row} has no map of "{name}"; its annotators: {known}')
    return check_map(annotators[name], reference)


def _sample(reference: str, path: Path, index: int) -> Sample:
    from hkmap.shards.reader import open_shard  # h5py is slow to load

    shard = open_shard(path)
    if index >= len(shard):
        raise ImageError(f"{reference}: the shard has {len(shard)} records, counted from 0")
    return shard.read(index)
