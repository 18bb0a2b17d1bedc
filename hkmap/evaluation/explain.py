"""Where the maps come from that are measured: a row of EXPLANATIONS, files by id, or what the records refer to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hkmap.choices import Choices
from hkmap.engine.data import Batch, view_of
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import TrainedModel
from hkmap.errors import ChoiceError, MapError, RecordError, RunError
from hkmap.evaluation.cam import cam, grad_cam
from hkmap.files.references import file_name
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import view_map
from hkmap.networks.classifier import Classifier
from hkmap.networks.outside import is_layered
from hkmap.records import Record, reference_of
from hkmap.shards.sequence import ShardSequence
from hkmap.stream.references import load_map

HUMAN, NONE = "human", "none"
_SIGMA = 1 / 4      # of the Gaussian in the middle, as a share of each side


class Asked(NamedTuple):
    """A batch whose answer is to be explained; ``numbers`` are those of the records in their shards.

    The batch may be filled up with samples that nobody asks of: ``ids`` and ``numbers`` are of the first ones.
    """

    network: Classifier
    images: Tensor              # (B, 3, H, W), as the network sees them
    classes: Tensor             # (B,), those to explain
    own: Tensor | None          # (B, 1, h, w), the network's own maps
    batch: Batch                # with the human maps
    ids: Sequence[str]
    numbers: Sequence[int]


#: What is asked → maps (B, 1, h, w) of any size, higher where the class is seen. Gradients can be taken.
Explain = Callable[[Asked], Tensor]


@dataclass(frozen=True)
class Explanation:
    """A way to get maps; with None the network's own attention is measured, or there is none.

    ``of_layer``: ``maps`` takes a keyword ``layer`` too, the dotted name of a module or None.
    """

    title: str
    maps: Callable[..., Tensor] | None
    of_layer: bool = field(default=False, kw_only=True)


def human(asked: Asked) -> Tensor:
    """Return the human maps, zeros where nobody drew one."""
    return asked.batch.maps


def random(asked: Asked) -> Tensor:
    """Return even random values in [0, 1] of the human maps' size, which depend on the record's id alone."""
    maps = torch.zeros_like(asked.batch.maps)
    for row, identifier in enumerate(asked.ids):
        digest = hashlib.shake_256(b"hkmap random map 0 " + identifier.encode()).digest(4 * maps[row].numel())
        maps[row] = torch.from_numpy(np.frombuffer(digest, "<u4") / 2.0**32).view(maps.shape[1:])
    return maps


def center(asked: Asked) -> Tensor:
    """Return a Gaussian in the middle, of the human maps' size; sigma is a quarter of each side, the peak 1."""
    lines = [(torch.arange(side) + 0.5) / side - 0.5 for side in asked.batch.maps.shape[2:]]
    down, across = (torch.exp(-(line**2) / (2 * _SIGMA**2)) for line in lines)
    middle = torch.outer(down / down.max(), across / across.max())
    return middle.to(asked.images.device).expand(asked.batch.maps.shape)


def _of_layer(method: Callable[..., Tensor], asked: Asked, layer: str | None = None) -> Tensor:
    if not is_layered(asked.network):
        raise RunError("an ONNX graph, or a function, gives no gradients and shows no layers, which cam and gradcam "
                       "need; give a torch.nn.Module by --model, or use other --maps")
    return method(asked.network, asked.images, asked.classes, layer)


EXPLANATIONS = Choices("maps", {
    "attention": Explanation("The attention map of the network, which weights its features.", None),
    "cam": Explanation(
        "Class activation map of a network with average pooling and one linear layer (Zhou et al., CVPR 2016).",
        partial(_of_layer, cam), of_layer=True,
    ),
    "gradcam": Explanation(
        "Grad-CAM, of any network whose layers have places (Selvaraju et al., ICCV 2017).",
        partial(_of_layer, grad_cam), of_layer=True,
    ),
    HUMAN: Explanation("The human map of the record.", human),
    "random": Explanation("Random values that depend on the record's id alone: a baseline.", random),
    "center": Explanation("A Gaussian in the middle of the image, the same for all: a baseline.", center),
    NONE: Explanation("No map, so that only answers can be measured.", None),
}, group="hkmap.explanations", kind=Explanation)


def explainer(
    name: str, model: TrainedModel, shards: ShardSequence | None, *, layer: str | None = None,
    target: str = "predicted",
) -> Explain | None:
    """Return what gives the maps ``name``; None for the network's own, and for none.

    ``name`` is a row of EXPLANATIONS; else a folder or NAME.h5 of maps by id, as `hkmap predict --out` writes them;
    else a key of the records with a map reference. Without ``shards`` it is a row that needs no record. ``layer`` is
    for cam and gradcam; ``target`` "label" has them explain the class of the label, where a sample has one, whatever
    is asked. Raises ChoiceError for what is none of these.
    """
    known = name in EXPLANATIONS
    row = EXPLANATIONS[name] if known else None
    if layer is not None and not (row and row.of_layer):
        raise ChoiceError(f"--layer {layer}: maps {name!r} are of no layer; use --maps gradcam or cam, or omit --layer")
    if shards is None and (row is None or name in (HUMAN, NONE)):
        some = ", ".join(row for row in EXPLANATIONS if row not in (HUMAN, NONE))
        raise ChoiceError(f"maps {name!r} cannot be made of an image alone; expected one of {some}")
    if row is None:
        assert shards is not None
        return _loaded(_finder(name, shards), model.preprocessing, shards)
    if row.maps is None:
        return None
    explain = partial(row.maps, layer=layer) if row.of_layer else row.maps
    return partial(_of_label, explain) if target == "label" else explain


def _of_label(explain: Explain, asked: Asked) -> Tensor:
    labels = asked.batch.labels
    return explain(asked._replace(classes=torch.where(labels >= 0, labels, asked.classes)))


def maps_of_batch(explain: Explain, asked: Asked) -> Tensor:
    """Return what ``explain`` gives; raise RunError where it does not have the shape of maps, or is not finite."""
    maps = explain(asked)
    if maps.shape[:2] != (len(asked.images), 1) or maps.ndim != 4:
        raise RunError(f"explain gave maps of shape {tuple(maps.shape)}; expected ({len(asked.images)}, 1, h, w)")
    finite = maps.isfinite().flatten(1).all(1).tolist()[: len(asked.ids)]
    if not all(finite):
        identifier = asked.ids[finite.index(False)]
        raise RunError(f'record "{identifier}": its map holds NaN or infinite values; expected finite numbers')
    return maps


# maps in files

_Find = Callable[[str, int], str]       # a record's id and number → the reference of its map
_MAP = re.compile(r"\.(npy|png)$|\.h5#", re.IGNORECASE)      # what names one


def _finder(name: str, shards: ShardSequence) -> _Find:
    path = Path(name)
    if path.is_dir():
        return partial(_in_folder, path)
    if path.suffix == ".h5" and path.is_file():
        return partial(_in_rows, path, _rows_of(path))
    first: Record = shards.read(0).record if len(shards) else {}
    keys = [key for key, value in first.items() if key != "image" and _MAP.search(str(value))]
    if name in keys:
        return partial(_in_record, name, shards)
    near = get_close_matches(name, [*EXPLANATIONS, *keys], 1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    raise ChoiceError(
        f"maps {name!r} are unknown;{hint} expected one of {', '.join(EXPLANATIONS)}; a key of the records with a map "
        f"reference ({', '.join(keys) or 'the first has none'}); or an existing folder or NAME.h5 of maps by id"
    )


def _in_folder(folder: Path, identifier: str, number: int) -> str:
    paths = [folder / f"{file_name(identifier)}.{suffix}" for suffix in ("npy", "png")]
    for path in paths:
        if path.exists():
            return str(path)
    raise MapError(
        f'record "{identifier}": no map in {paths[0]}, nor as .png; expected one for each record, as '
        "`hkmap predict --out` writes them"
    )


def _in_rows(path: Path, rows: dict[str, int], identifier: str, number: int) -> str:
    if identifier not in rows:
        raise MapError(f'record "{identifier}": {path} has no map of this id; expected one for each record')
    return f"{path}#{rows[identifier]}"


def _in_record(key: str, shards: ShardSequence, identifier: str, number: int) -> str:
    reference = reference_of(shards.read(number).record, key)
    if reference is None:
        raise RecordError(
            f'{shards.place(number)}: record "{identifier}" has no key "{key}"; expected a map reference in each record'
        )
    return reference


def _rows_of(path: Path) -> dict[str, int]:
    """Return the row of each id in an .h5 file of maps; raise MapError where it has no ids, or one twice."""
    from hkmap.files.hdf5 import open_columns  # h5py is slow to load

    file = open_columns(path)
    if not {"ids/bytes", "ids/offsets"} <= file.by_name.keys():
        raise MapError(f"{path}: has no dataset `ids`; expected maps by id, as `hkmap predict --out` writes them")
    content, offsets = file.whole("ids/bytes").tobytes(), file.whole("ids/offsets").tolist()
    ids = [content[start:stop].decode("utf-8", "replace") for start, stop in pairwise(offsets)]
    rows = {identifier: row for row, identifier in enumerate(ids)}
    if len(rows) < len(ids):
        raise MapError(f"{path}: holds {len(ids)} maps of {len(rows)} ids; expected one map of an id; make it again")
    return rows


def _loaded(find: _Find, preprocessing: Preprocessing, shards: ShardSequence) -> Explain:
    """Return what loads each record's map, and shows it through the network's view, at the map's own size.

    All must have one size. They are zeros for the samples that nobody asks of.
    """
    sizes: dict[tuple[int, ...], str] = {}

    def load(identifier: str, number: int) -> Map:
        place = find(identifier, number)
        values = load_map(place)
        sizes.setdefault(values.shape, place)
        if len(sizes) > 1:
            (size, other), (found, _) = sizes.items()
            raise MapError(
                f"{place}: a map of {found[0]}x{found[1]} (height x width), but {other} has {size[0]}x{size[1]}; "
                "expected maps of one size; pass them through `hkmap resize`"
            )
        view, padded = view_of(shards, number, preprocessing), preprocessing.padding is not None
        return view_map(Weighted(values, None), view, values.shape, padded=padded).map

    def maps(asked: Asked) -> Tensor:
        found = [load(*record) for record in zip(asked.ids, asked.numbers, strict=True)]
        size = found[0].shape if found else (1, 1)
        filled = found + [np.zeros(size, np.float32)] * (len(asked.images) - len(found))
        return torch.from_numpy(np.stack(filled))[:, None].to(asked.images.device)

    return maps
