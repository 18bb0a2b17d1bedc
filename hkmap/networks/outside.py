"""Other people's classifiers, used like a network of hkmap: what a Python function returns, or an ONNX graph.

Such a network takes normalised images, float32 (B, 3, H, W). It gives logits (B, K), before the softmax: as a tensor, a
tuple (logits,) or (logits, attention), a mapping with "logits" and perhaps "attention", or an Output. The attention is
(B, 1, h, w) in [0, 1].
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from hkmap.errors import HkmapError, RunError
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output, place

logger = logging.getLogger("hkmap")

Network = Callable[[Tensor], Any]

_CPU = torch.device("cpu")
_LOGITS = 'logits (B, K) of floats; give them alone, as (logits, attention), or as {"logits": ..., "attention": ...}'


@dataclass(frozen=True)
class Foreign(Architecture):
    """A network that hkmap did not build; ``name`` is what its user calls it.

    ``attention_size`` is (height, width) of its attention, None where it gives none.
    """

    attention_size: tuple[int, int] | None = None

    @property
    def has_attention(self) -> bool:
        return self.attention_size is not None


class Called(nn.Module):
    """A function of images as a module, such as an ONNX graph: it is not made of torch's layers."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images.float())


def is_layered(network: object) -> TypeGuard[nn.Module]:
    """Say whether a network is made of torch's layers: it can be copied and changed, and may give gradients."""
    return isinstance(network, nn.Module) and not isinstance(network, Called)


def digest_of(network: nn.Module) -> str:
    """Return the sha256 of a network's parameters and buffers, with their names."""
    found = hashlib.sha256()
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


# a factory


def load_factory(name: str) -> Network:
    """Return the network that ``package.module:factory`` names: what the factory returns, or itself if it is a network.

    As by `python -m`, the current folder is searched first. Raises RunError where there is no such network.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise RunError(f'"{name}": expected MODULE:FACTORY, such as my_package.networks:make')
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    remedy = "expected a module that is installed or in the current folder"
    with _explained(f"{name}: {module} cannot be imported", remedy):
        content = importlib.import_module(module)
    if not hasattr(content, attribute):
        near = get_close_matches(attribute, dir(content), 1)
        hint = f'did you mean "{near[0]}"?' if near else "expected a function that returns a network"
        raise RunError(f'{name}: {module} has no "{attribute}"; {hint}')
    made = getattr(content, attribute)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise RunError(f"{name}: is {_shown(made)}; expected a function that takes nothing and returns a network")
        with _explained(f"{name}: the factory failed", f"mend it; it is called as {attribute}()"):
            made = made()
        if isinstance(made, type) or not callable(made):
            raise RunError(f"{name}: returned {_shown(made)}; expected a torch.nn.Module")
    return made


@contextmanager
def _explained(fault: str, remedy: str) -> Iterator[None]:
    """Make a sentence of whatever fails in somebody else's code."""
    try:
        yield
    except (HkmapError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RunError(f"{fault} ({reason:.200}); {remedy}") from error


# what a network answers


def classifier(network: Network, name: str, image_size: tuple[int, int]) -> tuple[nn.Module, Output]:
    """Return a network as a Classifier on the CPU and in eval mode, and what it answers to two random images.

    An nn.Module stays itself, and its answers become Outputs. Each answer is checked. Raises RunError, which begins
    with ``name``, where the network fails, or its answers are not as above.
    """
    module = network if isinstance(network, nn.Module) else Called(network)
    if isinstance(module, torch.jit.ScriptModule):      # which has no hooks
        module = nn.Sequential(module)
    images = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
    what = f"images of float32 (2, 3, {image_size[0]}, {image_size[1]})"
    remedy = "expected a network that takes such images; see --image-size"
    with torch.no_grad(), _explained(f"{name}: failed on {what}", remedy):
        place(module, _CPU).eval()
        module.register_forward_hook(partial(_as_output, name))
        output = module(images)
        _refuse_probabilities(name, output.logits)
        return module, output


def _as_output(name: str, module: nn.Module, given: tuple[Tensor, ...], answer: object) -> Output:
    """Return a network's answer as an Output; raise RunError where it is none."""
    logits, attention, count = *_parts(answer), len(given[0])
    if not (isinstance(logits, Tensor) and logits.is_floating_point()
            and logits.ndim == 2 and len(logits) == count and logits.shape[1]):
        raise RunError(f"{name}: gave {_shown(logits)} for {count} images; expected {_LOGITS}")
    if attention is not None:
        _check_attention(name, attention, count)
    return answer if isinstance(answer, Output) else Output(logits, None, attention)


def _refuse_probabilities(name: str, logits: Tensor) -> None:
    """Raise RunError for answers to random images that are probabilities: a second softmax would flatten them."""
    if logits.shape[1] > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all():
        raise RunError(f"{name}: gives probabilities, which add up to 1; expected logits: omit the softmax at the end, "
                       "or give the logarithm of its result")


def _parts(answer: Any) -> tuple[Any, Any]:
    """Return the logits and the attention of an answer, which may be anything."""
    if isinstance(answer, Output):
        return answer.logits, answer.attention
    if isinstance(answer, Mapping):
        return answer.get("logits", answer), answer.get("attention")
    if isinstance(answer, tuple | list) and len(answer) in (1, 2):
        return answer[0], answer[1] if len(answer) == 2 else None
    return answer, None


def _check_attention(name: str, attention: Any, count: int) -> None:
    if not (isinstance(attention, Tensor) and attention.is_floating_point()
            and attention.ndim == 4 and attention.shape[:2] == (count, 1)):
        raise RunError(
            f"{name}: gave {_shown(attention)} as attention of {count} images; expected floats (B, 1, h, w)"
        )
    if not ((attention >= 0) & (attention <= 1)).all():      # NaN is not
        raise RunError(f"{name}: gave attention outside [0, 1]; scale it, as by a sigmoid, or give logits alone")


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, type):
        return "a class"
    name = type(value).__name__
    keys = f" of {', '.join(map(str, list(value)[:5]))}" if isinstance(value, Mapping) and value else ""
    return "None" if value is None else f"a{'n' * (name[0] in 'aeiouAEIOU')} {name}{keys}"


# ONNX


def load_onnx(path: str | Path) -> Graph:
    """Return the classifier in an ONNX file; raise RunError where it is none, or onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise RunError(f"--onnx needs {error.name}; pip install 'hkmap[onnx]'") from error
    return Graph(Path(path))


class Graph:
    """An ONNX graph as a function of images on any device, which onnxruntime computes there if it can.

    The first output is the logits; one of the name "attention" is that. ``metadata`` are the file's texts by name,
    ``size`` is (height, width) of the images, each None where it is free.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sessions: dict[torch.device, Any] = {}
        session = self._session(_CPU)
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        given = session.get_inputs()
        shape = [side if isinstance(side, int) else None for side in given[0].shape] if len(given) == 1 else []
        if len(shape) != 4 or shape[1] not in (3, None) or given[0].type != "tensor(float)":
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in given)
            raise RunError(f"{path}: takes {found or 'nothing'}; expected one input of float images (B, 3, H, W)")
        self.input, self.batch, self.size = given[0].name, shape[0], (shape[2], shape[3])
        names = [output.name for output in session.get_outputs()]
        self.outputs = [names[0], *(name for name in names[1:] if name == "attention")]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Answer images (B, 3, H, W); where the graph's batch is fixed, in parts of it, the last one filled up."""
        session, parts = self._session(images.device), []
        for part in images.detach().cpu().split(self.batch or len(images)):
            missing = (self.batch or len(part)) - len(part)
            filled = functional.pad(part, (0,) * 7 + (missing,)).contiguous()
            answers = session.run(self.outputs, {self.input: filled.numpy()})
            parts.append([torch.from_numpy(answer)[: len(part)] for answer in answers])
        joined = (torch.cat(output).to(images.device) for output in zip(*parts, strict=True))
        return dict(zip(("logits", "attention"), joined, strict=False))

    def _session(self, device: torch.device) -> Any:
        if device not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4      # what fails is raised too
            options.intra_op_num_threads = torch.get_num_threads()
            wanted: list[Any] = ["CPUExecutionProvider"]
            if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                wanted.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            with _explained(f"{self.path}: onnxruntime cannot read it", "expected an ONNX file, copied whole"):
                session = onnxruntime.InferenceSession(self.path, options, providers=wanted)
            if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
                logger.warning("%s: is computed on the CPU, as this onnxruntime has no CUDA", self.path)
            self._sessions[device] = session
        return self._sessions[device]
