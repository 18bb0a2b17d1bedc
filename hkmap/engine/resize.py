"""Resize maps that are tensors, as `hkmap.maps.resize` resizes arrays."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hkmap.maps.resize import resize_matrix


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, 1, h, w) to (height, width): area average where an axis shrinks, bilinear where it grows.

    The definition is `hkmap.maps.resize.resize_matrix`, so arrays and tensors agree. Differentiable.
    """
    if maps.shape[-2:] == size:
        return maps
    rows, columns = (_matrix(maps.shape[axis], size[axis], maps.dtype, maps.device) for axis in (-2, -1))
    return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def _matrix(length: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):       # what is kept may be needed for a gradient later
        return torch.as_tensor(resize_matrix(length, target)).to(device=device, dtype=dtype)
