"""From shards to batches: decoding in threads, one view for image and map, normalising on the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hkmap.engine.controls import CONTROLS, Change
from hkmap.engine.inputs import AUGMENTATIONS, Preprocessing, augmented, plain_view
from hkmap.engine.ranks import current
from hkmap.engine.runs import HeldOut, TrainedModel
from hkmap.errors import RecordError, RunError
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import WHOLE, Image, View, view_image, view_map
from hkmap.records import Record, label_of, shown
from hkmap.shards.folds import groups_of, ids_of, part_of
from hkmap.shards.layout import Sample
from hkmap.shards.loader import LoadedBatch, ShardLoader, Shares, SizedReader
from hkmap.shards.sequence import ShardSequence

Numbers = npt.NDArray[np.int64]
Item = dict[str, Tensor]

logger = logging.getLogger("hkmap")


class Example(NamedTuple):
    """One sample as the network sees it, on the host."""

    image: Image                # (H, W, 3) RGB
    map: Map                    # (h, w) of the attention's size; zeros where nobody drew one
    certainty: Map              # (h, w) how well each cell of the map is known; zeros without a map


class Batch(NamedTuple):
    """A batch; its images stay uint8 until they are on the device."""

    images: Tensor              # (B, H, W, 3) uint8
    maps: Tensor                # (B, 1, h, w) float32 in [0, 1]
    certainty: Tensor           # (B, 1, h, w) float32 in [0, 1]; 0 where nobody knows, as in all of a missing map
    labels: Tensor              # (B,) int64

    def to(self, device: torch.device) -> Batch:
        """Copy to the device, without waiting for it where the host's memory can be pinned."""
        host = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in host))


class ShardExamples:
    """The samples of shards, seen through a preprocessing and, in training, random views.

    How sample ``index`` looks in an epoch depends only on the seed, the epoch and the index, not on threads or on where
    training was resumed. ``map_of`` (n,) is the sample whose map each sample gets, -1 for none; ``change``, if any, is
    made to the map before it is seen.
    """

    def __init__(
        self,
        shards: ShardSequence,
        preprocessing: Preprocessing,
        map_size: tuple[int, int],
        *,
        augmentations: tuple[str, ...] = (),
        seed: int = 0,
        map_of: Numbers | None = None,
        change: Change | None = None,
    ) -> None:
        AUGMENTATIONS.check(*augmentations)
        self.shards = shards
        self.preprocessing = preprocessing
        self.labels = shards.labels
        self.image_size = preprocessing.size
        self.map_size = map_size
        self.augmentations = augmentations
        self.seed = seed
        self.map_of = np.arange(len(shards)) if map_of is None else map_of
        self.change = change

    def fill(self, index: int, image: Image, values: Map, certainty: Map, epoch: int = 0) -> None:
        """Read sample ``index``, as seen in ``epoch``, into an image (H, W, 3), its map and certainty (h, w)."""
        image[...], values[...], certainty[...] = self.example(index, epoch)

    def chance(self, index: int, epoch: int) -> np.random.Generator:
        """Return what decides on how sample ``index`` looks in ``epoch``."""
        return np.random.default_rng([self.seed, epoch, index])

    def example(self, index: int, epoch: int = 0) -> Example:
        """Return sample ``index`` as seen in ``epoch``; epochs differ by augmentation alone."""
        aspect, names, generator = self.preprocessing.aspect, self.augmentations, self.chance(index, epoch)
        return self.changed(index, lambda image, view: augmented(image, view, aspect, names, generator))

    def changed(self, index: int, change: Callable[[Image, View], tuple[Image, View]]) -> Example:
        """Return sample ``index`` after ``change`` of its image and of the plain view of it."""
        sample = self.shards.read_bare(index)
        image = sample.image(self.shards.place(index))
        image, view = change(image, plain_view(self.preprocessing, (image.shape[0], image.shape[1])))
        return seen_example(image, self.map_for(index, sample), view, self.preprocessing, map_size=self.map_size)

    def map_for(self, index: int, sample: Sample) -> Weighted | None:
        """Return the map that sample ``index`` trains on, at its own size; it is the same in every epoch."""
        owner = int(self.map_of[index])
        drawn = sample if owner in (index, -1) else self.shards.read_bare(owner)
        if owner == -1 or drawn.map is None:
            return None
        human = Weighted(drawn.map, drawn.certainty)
        # of four numbers, as those of the views are three, which numpy fills up with zeros
        return human if self.change is None else self.change(human, np.random.default_rng([self.seed, 0, index, 1]))


def seen_example(
    image: Image, human: Weighted | None, view: View, preprocessing: Preprocessing, *, map_size: tuple[int, int]
) -> Example:
    """Return an image (H, W, 3) and its human map as ``view`` shows them; padding has certainty 0 in the map."""
    padding = preprocessing.padding
    seen = view_image(image, view, preprocessing.size, padding)
    if human is None:
        return Example(seen, np.zeros(map_size, np.float32), np.zeros(map_size, np.float32))
    values, certainty = view_map(human, view, map_size, padded=padding is not None)
    return Example(seen, values, np.ones(map_size, np.float32) if certainty is None else certainty)


def view_of(shards: ShardSequence, number: int, preprocessing: Preprocessing) -> View:
    """Return the view of a sample without augmentation; its image is read where the view depends on its size."""
    if preprocessing.fit == "squash":
        return WHOLE
    image = shards.read_bare(number).image(shards.place(number))
    return plain_view(preprocessing, (image.shape[0], image.shape[1]))


def in_order(examples: ShardExamples, indices: Numbers, batch_size: int) -> Iterator[tuple[Numbers, Batch]]:
    """Yield the samples at ``indices`` once, in order: the numbers of those in a batch, and the batch.

    Of several ranks each has every ranks-th sample, and all have as many batches; where a rank has no sample left, its
    batch has no numbers.
    """
    ranks = current()
    shares = Shares(len(indices), batch_size * ranks.ranks, *ranks, shuffle=False, split=True)
    for loaded in ShardLoader(examples, shares, indices=indices).epoch(0):
        yield loaded.indices[loaded.weights > 0], tensors(loaded)


def tensors(batch: LoadedBatch) -> Batch:
    """Return a loaded batch as tensors, which share its memory."""
    maps, certainty = (torch.from_numpy(values)[:, None] for values in (batch.maps, batch.certainty))
    return Batch(torch.from_numpy(batch.images), maps, certainty, torch.from_numpy(batch.labels))


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples without labels into a batch."""
    images, maps, certainty = (torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True))
    return Batch(images, maps[:, None], certainty[:, None], torch.full((len(examples),), -1))


def normalise(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 (B, H, W, 3) into the network's input (B, 3, H, W), channels last in memory, on the same device."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype, device=images.device) * 255
    std = torch.tensor(preprocessing.std, dtype=dtype, device=images.device) * 255
    return ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2)


# what a run trains on


@dataclass(frozen=True)
class Data:
    """The samples to train on, and those to choose the best epoch on, if any; never the test set's."""

    examples: ShardExamples
    indices: Numbers
    validation: Data | None = None


def make_data(      # noqa: PLR0913  (all that says which samples are what)
    model: TrainedModel,
    shards: ShardSequence,
    val: ShardSequence | None,
    *,
    val_share: float = 0.0,
    augmentations: tuple[str, ...] = (),
    seed: int = 0,
    held_out: HeldOut | None = None,
    control: str = "none",
    maps_for: float | None = None,
) -> Data:
    """Return the data of a run; ``val_share`` of the shards is held out for validation where ``val`` is None.

    Nothing of the fold ``held_out`` is used. Where its folding has a group, training and validation share no group.
    ``control`` is a name in CONTROLS; no map of a sample that is not trained on is used. ``maps_for`` is how many
    training samples keep their map (an int), or the share of those with one (a float); see `samples_with_maps`.
    """
    check_classes(model, shards)
    warn_of_small_map(model)
    if np.any(shards.labels < 0):
        place = shards.place(int(np.argmax(shards.labels < 0)))
        raise RunError(
            f"{place}: has no label, and training needs one for each record; add it, as `hkmap join labels.csv --on "
            "image` does, or omit the record, and pack again"
        )
    indices = np.arange(len(shards)) if held_out is None else np.flatnonzero(~held_out.inside)
    validation = None
    if val is not None:
        check_classes(model, val)
        if not np.any(val.labels >= 0):
            raise RunError(
                f"{val.name}: no record has a label, and validation needs them; give --val shards whose records have "
                "labels, or use --val-share"
            )
        _warn_of_shared(shards, indices, val)
        validation = Data(ShardExamples(val, model.preprocessing, model.map_size), np.flatnonzero(val.labels >= 0))
    elif val_share > 0:
        chosen = _share_of(shards, indices, val_share, seed, None if held_out is None else held_out.folding.group)
        validation = Data(ShardExamples(shards, model.preprocessing, model.map_size), indices[chosen])
        indices = indices[~chosen]
    drawn = samples_with_maps(shards, indices, maps_for, seed)
    names = np.array([model.class_names[label] or f"label {label}" for label in shards.labels[drawn]], dtype=str)
    map_of = np.full(len(shards), -1)
    map_of[drawn] = CONTROLS[control].owners(drawn, names, seed)
    examples = ShardExamples(
        shards, model.preprocessing, model.map_size, augmentations=augmentations, seed=seed, map_of=map_of,
        change=CONTROLS[control].change,
    )
    return Data(examples, indices, validation)


def samples_with_maps(shards: ShardSequence, indices: Numbers, maps_for: float | None, seed: int) -> Numbers:
    """Return which of the samples ``indices`` train on a map: those that have one, or ``maps_for`` of them.

    An int is their number, a float in (0, 1] their share. Each class keeps about the same share of its maps, by the
    method of Sainte-Laguë. The seed alone decides which they are, and a larger number includes those of a smaller one.
    Raises RunError where there are fewer maps.
    """
    drawn = indices[shards.has_map[indices]]
    if maps_for is None:
        return drawn
    count = max(1, round(maps_for * len(drawn))) if isinstance(maps_for, float) else maps_for
    if count > len(drawn):
        raise RunError(f"--maps-for {maps_for}: {len(drawn)} training samples have a map; give that number or less")
    mixed = np.random.default_rng([seed, 0, 0, 2]).permutation(drawn)
    turns = np.empty(len(mixed))
    for label in np.unique(shards.labels[mixed]):
        inside = np.flatnonzero(shards.labels[mixed] == label)
        turns[inside] = (np.arange(len(inside)) + 0.5) / len(inside)
    return np.sort(mixed[np.argsort(turns, kind="stable")[:count]])


def _share_of(
    shards: ShardSequence, indices: Numbers, share: float, seed: int, group: str | None
) -> npt.NDArray[np.bool_]:
    """Return which of the samples (n,) are held out for validation; a group is so as a whole or not at all."""
    grouped = groups_of(shards, group, True)
    if grouped is None:
        mixed = np.random.default_rng([seed, 0, 0]).permutation(indices)    # another stream than the epochs' orders
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        return np.isin(indices, mixed[:count])
    shares = {"training": 1 - Fraction(str(share)), "validation": Fraction(str(share))}
    ids, groups = ([names[index] for index in indices] for names in (ids_of(shards), grouped))
    return part_of(ids, shards.labels[indices], groups, shares, seed=seed) == 1


def _warn_of_shared(shards: ShardSequence, indices: Numbers, val: ShardSequence) -> None:
    """Warn where the best epoch is chosen on records that the network learns from."""
    ids = ids_of(shards)
    if shared := {*ids_of(val)}.intersection(ids[index] for index in indices):
        logger.warning(
            '%d records of --val are trained on too, such as "%s"; the best epoch may not be the best for other images',
            len(shared), min(shared),
        )


def warn_of_small_map(model: TrainedModel) -> None:
    """Warn where the attention map is a single cell, which shows no place."""
    if model.architecture.has_attention and model.map_size == (1, 1):
        height, width = model.preprocessing.size
        logger.warning(
            "the attention map of %s at %dx%d pixels is a single cell, so it shows no place; train with a larger "
            "--image-size, or with --stem small", model.architecture.name, width, height,
        )


def check_classes(model: TrainedModel, shards: ShardSequence) -> None:
    """Raise RunError where the shards' labels are not the network's.

    Where a label that occurs has no name in one of the two, the numbers of classes must be equal.
    """
    known, labels = model.class_names, np.unique(shards.labels[shards.labels >= 0]).tolist()
    remedy = "pack all shards with the same --classes"
    if labels and labels[-1] >= len(known):
        raise RunError(f"{shards.name}: label {labels[-1]} is beyond the network's {len(known)} classes; {remedy}")
    for label, (ours, theirs) in enumerate(zip(known, shards.classes, strict=False)):
        if ours and theirs and ours != theirs:
            raise RunError(f'{shards.name}: label {label} is "{theirs}", for the network it is "{ours}"; {remedy}')
    unnamed = [label for label in labels if not (known[label] and shards.classes[label])]
    if unnamed and len(known) != len(shards.classes):
        raise RunError(
            f"{shards.name}: has {len(shards.classes)} classes, the network {len(known)}, and no name on both sides "
            f"tells that label {unnamed[0]} is the same; {remedy}"
        )


def check_label(model: TrainedModel, record: Record) -> None:
    """Raise RecordError where a record's label is not the network's."""
    known, label, name = model.class_names, label_of(record), record.get("class")
    place, remedy = f'record "{record["id"]}": label {label}', "number the classes as in its training, or omit label"
    if label >= len(known):
        raise RecordError(f"{place} is beyond the network's {len(known)} classes; {remedy}")
    if label >= 0 and name and known[label] not in ("", name):
        raise RecordError(f'{place} is "{shown(name)}", for the network it is "{known[label]}"; {remedy}')


# for training loops that are not ours


class ShardDataset(Dataset[Item]):
    """The records of shards by number, for a `torch.utils.data.DataLoader` with any sampler and number of workers.

    An item is a dictionary: ``image`` (H, W, 3) uint8, RGB, of which `normalise` takes batches; ``map`` (1, h, w)
    float32 in [0, 1], zeros where it is missing; ``certainty`` (1, h, w) float32 in [0, 1], how well each cell is
    known, 0 in all of a missing map; ``label`` int64, -1 where unknown; ``index`` int64, the record's number in the
    sequence. ``transform`` takes that dictionary and returns the item; what moves the image must move the map too.

    Raises ShardError, naming the record, where it is damaged or of another size than the others.
    """

    def __init__(self, reader: SizedReader, transform: Callable[[Item], Item] | None = None) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader.shards)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)          # a sampler may give a tensor
        image = np.empty((*self.reader.image_size, 3), np.uint8)
        values, certainty = (np.empty(self.reader.map_size, np.float32) for _ in range(2))
        self.reader.fill(index, image, values, certainty)
        item = {
            "image": torch.from_numpy(image),
            "map": torch.from_numpy(values)[None],
            "certainty": torch.from_numpy(certainty)[None],
            "label": torch.tensor(self.reader.shards.labels[index]),
            "index": torch.tensor(index),
        }
        return item if self.transform is None else self.transform(item)
