"""What kinds of number a processor computes with fast."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

#: The features of a processor, as Linux names them, one of which it needs to be fast in bfloat16.
BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

logger = logging.getLogger("hkmap")


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the features of the processor by Linux's names; none where the system does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, []))


def warn_of_slow(option: str, name: str, units: frozenset[str], device: torch.device) -> None:
    """Warn where the processor has none of the ``units`` that the numbers ``name`` need, and is not said to have any.

    ``option`` is what a user chooses them by.
    """
    features = processor_features() if device.type == "cpu" and units else frozenset()
    if features and not features & units:
        logger.warning(
            "%s %s is many times slower than float32 on this processor, which has no units for it; use %s float32",
            option, name, option,
        )
