"""Published ImageNet weights: torchvision's for our own networks, and for timm's those that timm publishes."""

from __future__ import annotations

import hashlib
import logging
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn

from hkmap.errors import HkmapError, OutputError, RunError
from hkmap.files.opening import file_content
from hkmap.networks import timm
from hkmap.networks.backbone import Architecture
from hkmap.networks.weights import read_weights, take_weights

logger = logging.getLogger("hkmap")

SERVER = "https://download.pytorch.org/models/"
#: The file of each; its name ends in the first digits of its sha256.
_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
}


def load_pretrained(network: nn.Module, architecture: Architecture, *, progress: bool = False) -> list[str]:
    """Load published weights into ``network`` and return the names of what keeps its random weights.

    What is not on this machine yet is downloaded, with a bar on stderr where ``progress`` asks for it. Raises RunError
    where there are none, or they cannot be had.
    """
    if not timm.is_timm(architecture.name):
        path = pretrained_file(architecture, progress=progress)
        return take_weights(network, read_weights(path), architecture, str(path))
    name = architecture.backbone
    try:
        given = timm.create(name, pretrained=True).state_dict()
    except HkmapError:
        raise
    except Exception as error:      # of the libraries for hubs, each in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        hub = timm.hub_of(name)
        where = f"; off line, copy model.safetensors from {hub} and give it as --weights" if hub else ""
        raise RunError(f"{name}: timm cannot load its published weights ({reason}){where}") from error
    return take_weights(network, given, architecture, name)


def pretrained_file(architecture: Architecture, *, progress: bool = False) -> Path:
    """Return torchvision's weights of a plain network in torch.hub's folder; download them where they are not there.

    Raises RunError where there are none, where they cannot be downloaded, and where the file is not the published one.
    """
    name = _FILES.get(architecture.backbone)
    if name is None or (architecture.stem, architecture.width) != ("standard", 64):
        raise RunError(
            f"{architecture.name} of stem {architecture.stem} and width {architecture.width} has no published weights; "
            f"expected {', '.join(_FILES)}, of the standard stem and width 64, or timm/NAME; or give --weights"
        )
    digest = name.removesuffix(".pth").rpartition("-")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        _download(SERVER + name, path, digest, progress)
    found = hashlib.sha256(file_content(path)).hexdigest()
    if not found.startswith(digest):
        raise RunError(f"{path}: its sha256 begins with {found[:8]}, expected {digest}; delete it")
    return path


def preprocessing_of(architecture: Architecture) -> tuple[timm.Colour, timm.Colour] | None:
    """Return the mean and the standard deviation (R, G, B) that a network's published weights need, None for ours.

    Ours, as torchvision's, are ImageNet's, the default of `Preprocessing`. Nothing is downloaded.
    """
    return timm.preprocessing_of(architecture.backbone) if timm.is_timm(architecture.name) else None


def _download(url: str, path: Path, digest: str, progress: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: {error.strerror}; set TORCH_HOME to a folder that can be written") from error
    logger.info("downloads %s to %s", url, path)
    try:      # beside its name, compared with the digest, then renamed
        torch.hub.download_url_to_file(url, str(path), digest, progress=progress)
    except (OSError, RuntimeError, HTTPException) as error:
        raise RunError(
            f"{url} cannot be downloaded ({error}); off line, copy it to {path}, or give another by --weights"
        ) from error
