from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import Any

import click

from hkmap import __version__

#: What hkmap stands on, then what its extras bring, by the names that pip knows. OpenCV comes under four.
PACKAGES = (
    "torch", "numpy", "opencv-python", "opencv-python-headless", "opencv-contrib-python",
    "opencv-contrib-python-headless", "h5py", "scipy", "scikit-learn", "pillow", "matplotlib", "safetensors", "click",
    "rich", "jinja2", "pyyaml", "threadpoolctl",
    "timm", "onnx", "onnxruntime", "onnxscript", "pycocotools", "pyarrow", "distributed", "tensorboard", "wandb",
    "starlette", "uvicorn", "websockets",
)


@click.command("env")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; memory is in bytes.")
def env(as_json: bool) -> None:
    """Print versions and the machine, for a bug report.

    The text names hkmap, Python, the system, the cores and the memory that hkmap may use, HDF5, OpenCV, CUDA with its
    devices, and each package that is installed of those that hkmap and its extras need. It has no path, and names
    neither you nor your machine. What cannot be loaded says why.

    \b
    Example:
      hkmap env
      hkmap env --json | jq .packages.torch
    """
    found = environment()
    click.echo(json.dumps(found) if as_json else "\n".join(_rows(found)))


def environment() -> dict[str, Any]:
    """Return what a bug report needs to know of an installation, even of one that is broken."""
    from hkmap.parallel.threads import cores, machine_memory

    return {
        "hkmap": __version__, "python": platform.python_version(), "platform": platform.platform(), "cores": cores(),
        "memory": machine_memory(),
        "hdf5": _loaded("h5py", lambda h5py: h5py.version.hdf5_version),
        "opencv": _loaded("cv2", lambda cv2: cv2.__version__),
        "cuda": _loaded("torch", lambda torch: torch.version.cuda),
        "devices": _loaded("torch", lambda torch: [
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        ]),
        "packages": dict(_installed()),
    }


def _loaded(name: str, ask: Callable[[Any], Any]) -> Any:
    """Import a library and ask it; where that fails, return why, without the paths that errors of loaders have."""
    try:
        return ask(import_module(name))
    except Exception as error:      # a broken library raises anything, and is what the report is about
        reason = re.sub(r"(?:/[^/:'\"]+)+/", "", " ".join(f"{type(error).__name__}: {error}".split()))
        return f"cannot be loaded ({reason})"


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _rows(found: dict[str, Any]) -> Iterator[str]:
    devices = found["devices"]
    rows = {
        **found, "memory": f"{found['memory'] / 2**30:.1f} GiB", "cuda": found["cuda"] or "none",
        "devices": (", ".join(devices) or "none") if isinstance(devices, list) else devices, **found["packages"],
    }
    del rows["packages"]
    width = max(map(len, rows))
    for name, value in rows.items():
        yield f"{name:{width}}  {value}"
