"""Projects of VIA 3: their images and regions in the form of version 2, which the reader of VIA takes from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import shown
from hkmap.sources.documents import as_list, as_numbers, as_object, as_text

Item = dict[str, Any]

PARTS = {"project", "attribute", "file", "metadata", "view"}
CSV_OF_3 = "# CSV_HEADER = metadata_id"
IMAGE = 2           # the type of a file: 4 is video, 8 is audio
TEXT = 1            # the type of an attribute: 2 to 5 choose among options, by their numbers with commas between
DEFAULT = "_DEFAULT"

# VIA's number of a shape: its name in version 2, and what its numbers are; none where they are pairs of x and y.
SHAPES: dict[object, tuple[str, tuple[str, ...]]] = {
    1: ("point", ("cx", "cy")), 2: ("rect", ("x", "y", "width", "height")), 3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")), 5: ("polyline", ()), 6: ("polyline", ()), 7: ("polygon", ()),
}


def is_project(document: Item) -> bool:
    """Whether a document is a project of version 3."""
    return document.keys() >= PARTS


def project_images(document: Item, path: str) -> Iterator[tuple[str, object]]:
    """Yield the place of each image, and the image as version 2 has it; SourceError for videos."""
    parts = {part: as_object(document.get(part), f"{path}: {part}") for part in PARTS}
    images = {}
    for view, value in parts["view"].items():
        place = f'{path}: view "{view[:40]}"'
        files = as_list(as_object(value, place).get("fid_list"), f"{place}.fid_list")
        if len(files) != 1:
            raise SourceError(f"{place} has {len(files)} files; expected one image a view")
        images[view] = _image(parts["file"].get(str(files[0])), f'{path}: file "{str(files[0])[:40]}"')
    for key, value in parts["metadata"].items():
        place = f'{path}: metadata "{key[:40]}"'
        item = as_object(value, place)
        view = str(item.get("vid"))
        if view not in images:
            raise SourceError(f"{place}.vid is {shown(item.get('vid'))}; expected one of the views")
        _add(images[view], item, parts["attribute"], place)
    yield from ((f'{path}: view "{view[:40]}"', image) for view, image in images.items())


def _image(value: object, place: str) -> Item:
    file = as_object(value, place)
    if file.get("type") != IMAGE:
        raise SourceError(f"{place}.type is {shown(file.get('type'))}; expected an image ({IMAGE}), no video or sound")
    return {"filename": as_text(file.get("fname"), f"{place}.fname"), "file_attributes": {}, "regions": []}


def _add(image: Item, item: Item, attributes: Item, place: str) -> None:
    """Add a region to its image, or the attributes of the image itself, which have no place."""
    if item.get("z"):
        raise SourceError(f"{place} is a moment of a video; expected regions of images")
    named = _named(as_object(item.get("av") or {}, f"{place}.av"), attributes, place)
    numbers = as_list(item.get("xy"), f"{place}.xy")
    if numbers:
        image["regions"].append({"shape_attributes": _shape(numbers, f"{place}.xy"), "region_attributes": named})
    else:
        image["file_attributes"] |= named


def _named(values: Item, attributes: Item, place: str) -> Item:
    """Return the values by the names of their attributes."""
    named = {}
    for key, value in values.items():
        where = f'{place}: attribute "{key[:40]}"'
        attribute = as_object(attributes.get(key), where)
        named[as_text(attribute.get("aname"), f"{where}.aname")] = _value(value, attribute)
    return named


def _value(value: object, attribute: Item) -> object:
    """Return what a value stands for: the text of the option that was chosen, the texts where it is not one."""
    options = attribute.get("options")
    if attribute.get("type") == TEXT or not isinstance(options, dict) or not isinstance(value, str):
        return value
    chosen = [str(attribute.get("default_option_id")) if one == DEFAULT else one for one in value.split(",")]
    texts = [options.get(one, "" if DEFAULT in value else one) for one in chosen]
    return texts[0] if len(texts) == 1 else texts


def _shape(xy: list[Any], place: str) -> Item:
    kind, *numbers = as_numbers(xy, place)
    if kind not in SHAPES:
        known = ", ".join(f"{number} ({name})" for number, (name, _) in SHAPES.items())
        raise SourceError(f"{place} has a shape of the kind {kind:g}; expected one of {known}")
    name, names = SHAPES[kind]
    if len(numbers) != len(names) if names else len(numbers) % 2 or not numbers:
        expected = len(names) or "pairs of x and y"
        raise SourceError(f"{place} has {len(numbers)} numbers for a {name}; expected {expected}")
    points = {"all_points_x": numbers[::2], "all_points_y": numbers[1::2]}
    return {"name": name, **(dict(zip(names, numbers, strict=True)) if names else points)}
