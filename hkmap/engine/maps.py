"""Maps as tensors."""

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
    rows = _matrix(maps.shape[-2], size[0], maps.dtype, maps.device)
    columns = _matrix(maps.shape[-1], size[1], maps.dtype, maps.device)
    return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def _matrix(length: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.as_tensor(resize_matrix(length, target)).to(device=device, dtype=dtype)
