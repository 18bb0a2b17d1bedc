"""A trained network and all that belongs to it: its file, its device, the memory it takes, the fold it held out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hkmap.engine.checkpoints import (
    check_weights,
    control_of,
    described_by_export,
    plain_weights,
    read_model,
    write_model,
)
from hkmap.engine.inputs import Preprocessing
from hkmap.errors import ChoiceError, RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.architectures import build, dry_run, map_size, on_meta
from hkmap.networks.backbone import Architecture
from hkmap.networks.outside import Foreign, Network, classifier, load_onnx
from hkmap.networks.weights import load_weights
from hkmap.parallel.threads import machine_memory
from hkmap.shards.folds import Folding, digest_of, folds_of, ids_of
from hkmap.shards.sequence import ShardSequence
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")

_NO_MEMORY = re.compile("can't allocate memory|out of memory|ALLOC_FAILED")      # in torch's own words
BEST, LAST = "best.safetensors", "last.safetensors"      # of a run folder

@dataclass(frozen=True)
class TrainedModel:
    """A network with all that is needed to use it: no flags, no other file.

    ``control`` is a name in controls.CONTROLS, or several as `controls.combined` joins them: whether the human maps it
    learnt from, in this run or before, were a sham. ``fold`` is the fold of its shards that it held out, as
    ``described``; None where it learnt from all.
    """

    network: AttentionBranchNetwork
    architecture: Architecture
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    control: str
    fold: dict[str, Any] | None = None

    @cached_property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the attention map; of another's network without one a 16th of the image's, as of most."""
        if isinstance(self.architecture, Foreign):
            height, width = self.preprocessing.size
            return self.architecture.attention_size or (-(-height // 16), -(-width // 16))
        return map_size(self.architecture, self.preprocessing.size)


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:1" names; auto is CUDA where there is one."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if there else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", name)
    if found is None:
        raise RunError(f'--device "{name:.80}" is unknown; expected auto, cpu, cuda or cuda:N')
    if name == "cpu":
        return torch.device(name)
    if not there:
        raise RunError(f"--device {name}: this machine has no CUDA device that torch can use; use --device cpu")
    if int(found[1] or 0) >= there:
        raise RunError(f"--device {name}: this machine has cuda:0 to cuda:{there - 1}; use one of these")
    return torch.device(name)


def in_words(device: torch.device) -> str:
    """Return a device as people know it, such as "cuda:0, NVIDIA H100" or "cpu, 2 threads"."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} {'thread' if threads == 1 else 'threads'}"


def new_model(
    architecture: Architecture, preprocessing: Preprocessing, class_names: Sequence[str], seed: int
) -> TrainedModel:
    """Return an untrained network; the seed fixes its weights."""
    torch.manual_seed(seed)
    return TrainedModel(build(architecture), architecture, preprocessing, tuple(class_names), "none")


def import_model(
    path: Path, architecture: Architecture, preprocessing: Preprocessing, class_names: Sequence[str] | None
) -> TrainedModel:
    """Return a model with another program's weights, which must be those of the whole network.

    Without ``class_names`` its classes have none. An export of ours keeps its control. Raises RunError where the file
    and the network do not fit.
    """
    names = class_names or [""] * architecture.classes
    if len(names) != architecture.classes:
        raise RunError(f"{path}: has {architecture.classes} classes, and {len(names)} are named; name its own")
    model = new_model(architecture, preprocessing, names, 0)
    if fresh := load_weights(model.network, path, architecture):
        raise RunError(
            f"{path}: has nothing for {few(fresh, 3)}, and a run must be whole; is it of this --arch and of "
            f"{architecture.classes} classes? Otherwise start from it by `hkmap train --weights`"
        )
    return replace(model, control=control_of(path))


def other_model(
    network: Network, name: str, preprocessing: Preprocessing | None = None, class_names: Sequence[str] | None = None,
    *, control: str = "none",
) -> TrainedModel:
    """Return somebody else's network, as `hkmap.networks.outside` describes it, for evaluation and prediction.

    ``name`` says in messages which one it is. Without ``class_names`` its classes have none. Raises RunError where it
    does not answer such images, or answers with other classes.
    """
    preprocessing = preprocessing or Preprocessing()
    module, output = classifier(network, name, preprocessing.size)
    classes, drawn = output.logits.shape[1], output.attention
    names = class_names or [""] * classes
    if len(names) != classes:
        raise RunError(
            f"{name}: gives logits of {classes} classes, expected {len(names)}, as the data have; give a network of "
            "these classes, or pack the shards with its --classes"
        )
    architecture = Foreign(name, classes, attention_size=None if drawn is None else (drawn.shape[2], drawn.shape[3]))
    as_ours = cast("AttentionBranchNetwork", module)      # what only ours can do asks has_branch first
    return TrainedModel(as_ours, architecture, preprocessing, tuple(names), control)


def onnx_model(
    path: str | Path, preprocessing: Preprocessing | None = None, class_names: Sequence[str] | None = None
) -> TrainedModel:
    """Return the classifier in an ONNX file, for evaluation and prediction.

    A file of `hkmap export` says what images it takes, names its classes, and has its run's control. Raises RunError
    where it is told otherwise, and as `other_model` does.
    """
    graph = load_onnx(path)
    height, width = (preprocessing or Preprocessing()).size
    if "hkmap" in graph.metadata:
        if preprocessing is not None:
            raise RunError(
                f"{path}: an export of hkmap, which says itself what images it takes and which classes it has; omit "
                "--image-size, --fit, --mean, --std and --classes"
            )
        told = described_by_export(Path(path), graph.metadata)
        return other_model(
            graph, str(path), kept_preprocessing(told["preprocessing"]), told["class_names"], control=told["control"]
        )
    if graph.size[0] not in (height, None) or graph.size[1] not in (width, None):
        taken = f"{graph.size[1] or width}x{graph.size[0] or height}"
        raise RunError(f"{path}: takes images of {taken} pixels, got {width}x{height}; give --image-size {taken}")
    return other_model(graph, str(path), preprocessing, class_names)


def save_model(path: Path, model: TrainedModel, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model as NAME.safetensors beside its name, then rename it; an older one is replaced.

    ``weights`` are by name, where they are others than the network's.
    """
    write_model(path, plain_weights(model.network) if weights is None else weights, {
        "architecture": asdict(model.architecture),
        "preprocessing": asdict(model.preprocessing),
        "class_names": list(model.class_names),
        "control": model.control,
        "fold": model.fold,
    })


def load_model(path: str | Path) -> TrainedModel:
    """Load the best model of the run folder ``path``, or the file ``path``; on the CPU.

    It is best.safetensors, or an older run's best.pt. Raises RunError where it is missing, damaged, not hkmap's, or
    does not fit together. Nothing in the file is executed, and no more is allocated than its tensors take.
    """
    file = model_file(path)
    content = read_model(file)
    try:
        architecture = Architecture(**content["architecture"])
        preprocessing = kept_preprocessing(content["preprocessing"])
        check_weights(file, content["weights"], on_meta(architecture).state_dict())
        network = build(architecture)
    except ChoiceError as error:
        raise ChoiceError(f"{file}: {error}") from error
    network.load_state_dict(content["weights"])
    names = tuple(content["class_names"])
    return TrainedModel(network.eval(), architecture, preprocessing, names, content["control"], content["fold"])


def model_file(path: str | Path) -> Path:
    """Return the file of weights that a run folder, or a file, stands for; raise RunError where there is none."""
    file = path = Path(path)
    if path.is_dir():
        file = next((path / name for name in (BEST, "best.pt") if (path / name).exists()), path / BEST)
    if not file.exists():
        raise RunError(f"{file}: no such checkpoint; expected a run folder of `hkmap train`, or its {BEST} or {LAST}")
    return file


def kept_preprocessing(kept: dict[str, Any]) -> Preprocessing:
    """Return a preprocessing as JSON keeps it."""
    return Preprocessing(**{**kept, "mean": tuple(kept["mean"]), "std": tuple(kept["std"])})


def check_memory(
    architecture: Architecture, preprocessing: Preprocessing, batch_size: int, *, device: torch.device, training: bool
) -> None:
    """Raise RunError where a network and a batch take more memory than the machine, or the CUDA device, has.

    The estimate is a lower bound: the weights (in training their gradients and momenta too) and, in float32, the
    outputs of all convolutions and norms, which training keeps, or else the largest one. Nothing is allocated for it.
    The batch that the error names for a training would fit if an image took twice its lower bound.
    """
    weights, images = _bytes_of(architecture, preprocessing)
    fixed, image = (3 * weights, sum(images)) if training else (weights, max(images, default=0))
    needed = fixed + batch_size * image
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else machine_memory()
    if needed > there:
        what = f"{architecture.name} of width {architecture.width} with {batch_size} images of {preprocessing.width}x"
        sizes = f"takes at least {needed / 2**30:,.1f} GiB, and {device} has {there / 2**30:,.1f}"
        remedy = "use a lower --batch-size, or a machine with more memory"
        if training:
            remedy = _smaller((there - fixed) // (2 * image))
        raise RunError(f"{what}{preprocessing.height} {sizes}; {remedy}")


@contextmanager
def memory_errors(
    architecture: Architecture, preprocessing: Preprocessing, batch_size: int, *, device: torch.device
) -> Iterator[None]:
    """Turn the end of the memory while a network is trained into a RunError with the batch size that would fit.

    That is an estimate as check_memory's, and as ``batch_size`` images were too many, at most half of them are named.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _NO_MEMORY.search(str(error)):
            raise
        weights, images = _bytes_of(architecture, preprocessing)
        there = machine_memory()
        if device.type == "cuda":      # others may use the card too
            there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        fits = min(int(there - 3 * weights) // (2 * sum(images)), batch_size // 2)
        size = f"{preprocessing.width}x{preprocessing.height}"
        said = f"{device} ran out of memory with {batch_size} images of {size} a batch"
        raise RunError(f"{said}; {_smaller(fits)}") from error


@contextmanager
def within_memory(model: TrainedModel, batch_size: int, device: torch.device) -> Iterator[None]:
    """Check the memory before a network answers batches, and make a RunError of its end, as the two above do."""
    kind = (model.architecture, model.preprocessing, batch_size)
    with memory_errors(*kind, device=device):
        check_memory(*kind, device=device, training=False)
        yield


def _smaller(fits: int) -> str:
    """Return what to type where ``fits`` images of a batch would fit."""
    if fits < 2:        # batch norm needs two
        return "two do not fit either; give a lower --image-size or --width, or a smaller --arch"
    return f"about {fits} fit; give --batch-size {fits} or a lower --image-size"


def _bytes_of(architecture: Architecture, preprocessing: Preprocessing) -> tuple[int, list[int]]:
    """Return the bytes of a network's weights, and per image those of each convolution's and norm's output.

    Nothing is known of another's network.
    """
    if isinstance(architecture, Foreign):
        return 0, [1]
    network, outputs = on_meta(architecture).eval(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda module, given, output: outputs.append(output.nbytes))
    dry_run(network, preprocessing.size)
    return sum(value.nbytes for value in network.state_dict().values()), outputs


# the fold that a run holds out: never used to train or to choose an epoch, only to measure


@dataclass(frozen=True)
class HeldOut:
    """Fold ``number``, from 1, of shards whose records are cut by ``folding``.

    ``inside`` (n,): which records are in it. ``digest`` identifies the assignment of all records to folds.
    """

    number: int
    folding: Folding
    inside: npt.NDArray[np.bool_]
    digest: str


def hold_out(shards: ShardSequence, number: int, folding: Folding) -> HeldOut:
    """Cut the records of shards into folds and take one; raise RecordError where they cannot be cut."""
    folds = folds_of(shards, folding)
    return HeldOut(number, folding, folds == number, digest_of(ids_of(shards), folds))


def described(held_out: HeldOut) -> dict[str, Any]:
    """Return what a checkpoint keeps of the held-out fold."""
    return {**named(held_out), "digest": held_out.digest}


def named(held_out: HeldOut) -> dict[str, Any]:
    """Return a fold as commands print it."""
    folding = held_out.folding
    return {"fold": f"{held_out.number}/{folding.folds}", "fold_seed": folding.seed, "group": folding.group}


def check_fold(model: TrainedModel, held_out: HeldOut | None) -> None:
    """Raise RunError where a network learnt from records of the fold; warn where that is possible.

    With another number, seed or group than the run's, the fold has records that the network learnt from. So it has with
    other shards, as a fold depends on all records.
    """
    kept = model.fold
    if held_out is None:
        if kept is not None:
            logger.warning("the network held out fold %s of its shards; use --fold if these are they", kept["fold"])
        return
    if kept is None:
        logger.warning("the network was trained without --fold, so it may have learnt from the records of this fold")
        return
    now = named(held_out)
    for key, found in now.items():
        if found != kept[key]:
            given = f"--{key.replace('_', '-')} is {'not given' if found is None else found}"
            raise RunError(f"{given}, but the network held out {_options(kept)} and learnt from the rest; use the same")
    if held_out.digest != kept["digest"]:
        raise RunError(
            f"the records, or their labels, differ from those of which the network held out {_options(kept)}, so the "
            "folds differ; name all the shards that it was trained with"
        )


def _options(kept: dict[str, Any]) -> str:
    group = f" --group {kept['group']}" if kept["group"] else ""
    return f"--fold {kept['fold']} --fold-seed {kept['fold_seed']}{group}"
