"""What a map is, checked once at each border."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError

ROUNDING = 1e-6      # how far beyond [0, 1] a value is taken for 0 or 1: a few steps of float32 at 1

Map = npt.NDArray[np.float32]


def check_map(values: npt.NDArray[np.generic], place: str) -> Map:
    """Return ``values`` as a map: (height, width), float32, finite, in [0, 1]; raise MapError otherwise.

    What rounding has carried beyond 0 or 1, by 1e-6 at the most, becomes 0 or 1.
    ``place`` names the file, record or option in the message.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise MapError(f"{place}: shape {values.shape}, expected (height, width); drop the channel or batch axis")
    if values.dtype.kind not in "fiub":
        raise MapError(f"{place}: type {values.dtype}, expected real numbers in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise MapError(f"{place}: holds NaN or infinite values, expected [0, 1]; unknown cells are 0, of certainty 0")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise MapError(
            f"{place}: values span [{low:.9g}, {high:.9g}], expected [0, 1]; divide by the maximum (255 if 8-bit)"
        )
    checked = np.ascontiguousarray(values, dtype=np.float32)
    return checked if low >= 0 and high <= 1 else checked.clip(0, 1)
