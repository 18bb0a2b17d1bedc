"""A network for other programs: files that answer without hkmap, checked by reading them back and asking them.

Every file takes ``images``, float32 (B, 3, H, W) of any B, normalised as its metadata say, and gives ``logits`` (B, K),
before the softmax, and from an attention branch ``attention`` (B, 1, h, w) in [0, 1].
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.errors import HkmapError, RunError
from hkmap.files.atomic import replacing
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.weights import author_name, published_names

logger = logging.getLogger("hkmap")

Answer = Callable[[Tensor], Sequence[Tensor]]      # images (B, 3, H, W) → the outputs

_TOLERANCE = 1e-3       # of an output's largest value, or of 1: what another order of float32 sums may change
_LARGEST_ONNX = 2**31 - 2**20       # bytes of weights; protobuf holds less than 2 GiB


class Outputs(nn.Module):
    """A network whose outputs are tensors alone: logits, and the attention where it has any."""

    def __init__(self, network: AttentionBranchNetwork) -> None:
        super().__init__()
        self.network = network
        self.names = ("logits",) if network.attention is None else ("logits", "attention")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return (output.logits,) if output.attention is None else (output.logits, output.attention)


@dataclass(frozen=True)
class Export:
    """What is written: a network on the CPU and in eval mode, images as it takes them, and texts by name."""

    outputs: Outputs
    architecture: Architecture
    images: Tensor              # (B, 3, H, W)
    texts: dict[str, str]


@dataclass(frozen=True)
class Format:
    """A kind of file: how to ``write`` it, how to ``read`` what answers in its place, and which package does that.

    ``read`` raises ImportError where the ``reader`` is not installed.
    """

    title: str
    write: Callable[[Export, Path], None]
    read: Callable[[Export, Path], Answer]
    reader: str


def export(
    network: AttentionBranchNetwork, architecture: Architecture, image_size: tuple[int, int], *,
    to: str, path: Path, metadata: Mapping[str, str], overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network, on the CPU and in eval mode, for images of (height, width); return what the file is.

    ``to`` is a name in EXPORTS. The file is read back and answers random images in batches of 1 and 3; where what
    reads it is not installed, a warning says so. Raises RunError where its answers are not the network's, or a package
    that writes it is not installed, and OutputError where ``path`` may not be replaced.
    """
    chosen, outputs = EXPORTS[to], Outputs(network)
    images = torch.randn(3, 3, *image_size, generator=torch.Generator().manual_seed(0))
    difference: float | None = None
    reader: str | None = None
    what = Export(outputs, architecture, images, dict(metadata))
    # torch warns of what it has deprecated in its own exporters
    with replacing(path, overwrite=overwrite) as beside, torch.no_grad(), warnings.catch_warnings(action="ignore"):
        expected = outputs(images)
        try:
            with _explained(f"--to {to}: torch cannot write {architecture.name}"):
                chosen.write(what, beside)
        except ImportError as error:
            raise RunError(f"--to {to} needs {error.name}; pip install 'hkmap[{to}]'") from error
        try:
            with _explained(f"--to {to}: {chosen.reader} cannot read what torch wrote of {architecture.name}"):
                difference = _compare(chosen.read(what, beside), images, expected)
                reader = _named(chosen.reader)
        except ImportError as error:
            logger.warning("%s: not checked, as that needs %s; pip install 'hkmap[%s]'", path, error.name, to)
        size = beside.stat().st_size
    return {
        "format": to,
        "inputs": {"images": ["batch", 3, *image_size]},
        "outputs": {
            name: ["batch", *value.shape[1:]] for name, value in zip(outputs.names, expected, strict=True)
        },
        "checked_with": reader,
        "largest_difference": difference,
        "bytes": size,
    }


@contextmanager
def _explained(fault: str) -> Iterator[None]:
    """Make a sentence of what fails in another package, on a network that may be a third one's."""
    try:
        yield
    except (HkmapError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RunError(f"{fault} ({reason:.200}); use another --to") from error


def _named(package: str) -> str:
    return f"{package} {import_module(package).__version__}"


def _compare(answer: Answer, images: Tensor, expected: Sequence[Tensor]) -> float:
    """Return the largest difference to what is expected; raise RunError where it is more than rounding."""
    largest = 0.0
    for count in (1, 3):
        for found, own in zip(answer(images[:count]), expected, strict=True):
            difference = (found - own[:count]).abs().max().item()
            if not difference <= _TOLERANCE * max(1.0, own.abs().max().item()):      # NaN is not
                raise RunError(
                    f"the exported network differs from the run's by {difference:.3g} on random images; expected "
                    "rounding alone; export it by another --to, and report this"
                )
            largest = max(largest, difference)
    return largest


def _write_safetensors(what: Export, path: Path) -> None:
    names = published_names(what.architecture)
    state = what.outputs.network.state_dict()
    save_file({author_name(name, names): value.contiguous() for name, value in state.items()}, path, what.texts)


def _read_safetensors(what: Export, path: Path) -> Answer:
    network, names, given = build(what.architecture).eval(), published_names(what.architecture), load_file(path)
    network.load_state_dict({name: given[author_name(name, names)] for name in network.state_dict()})
    return Outputs(network)


def _write_onnx(what: Export, path: Path) -> None:
    import onnx  # noqa: F401  (both are named in the sentence where they are missing)
    import onnxscript  # noqa: F401

    if (size := sum(value.nbytes for value in what.outputs.state_dict().values())) > _LARGEST_ONNX:
        raise RunError(f"--to onnx: {size / 2**30:.1f} GiB of weights, the format holds 2; use --to safetensors")
    program = torch.onnx.export(
        what.outputs, (what.images,), dynamo=True, input_names=["images"], output_names=list(what.outputs.names),
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )
    program.model.metadata_props.update(what.texts)     # type: ignore[union-attr]
    program.save(path, external_data=False)             # type: ignore[union-attr]


def _read_onnx(what: Export, path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


def _write_torchscript(what: Export, path: Path) -> None:
    traced = torch.jit.trace(what.outputs, what.images, check_trace=False)
    torch.jit.save(traced, path, _extra_files=what.texts)


def _read_torchscript(what: Export, path: Path) -> Answer:
    return torch.jit.load(path)


EXPORTS = Choices("export", {
    "safetensors": Format(
        "Weights alone, by the names of torchvision, timm and the ABN authors.", _write_safetensors, _read_safetensors,
        "safetensors",
    ),
    "onnx": Format("An ONNX graph, for onnxruntime and others.", _write_onnx, _read_onnx, "onnxruntime"),
    "torchscript": Format("A traced module, for torch.jit.load in Python and C++.", _write_torchscript,
                          _read_torchscript, "torch"),
})
