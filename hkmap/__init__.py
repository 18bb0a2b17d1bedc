"""Knowledge maps: from what people know about where to look to networks that look there.

The names below are the face of the library; each is imported when it is first used, so `import hkmap` is light.
docs/python.md shows them at work.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "kde_map": "maps.kde", "boxes_map": "maps.boxes", "masks_map": "maps.masks", "resize_map": "maps.resize",
    "pack": "stream.packing", "open_shards": "shards.sequence", "ShardDataset": "engine.data",
    "Architecture": "networks.backbone", "build": "networks.architectures", "map_size": "networks.architectures",
    "load_model": "engine.runs", "normalise": "engine.data", "losses": "engine.losses",
    "predict": "evaluation.prediction", "evaluate": "evaluation.evaluate", "insertion": "evaluation.curves",
    "deletion": "evaluation.curves",
}
__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'hkmap' has no attribute {name!r}; its names are {', '.join(_FACE)}")
    return getattr(import_module(f"hkmap.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
