"""The programs that hkmap's maps are compared with, as a user would write them in an afternoon; each is a process.

    python benchmarks/peers.py scott|radius|sums ROOT TABLE FOLDER     maps of a table of bubbles, as .npy files
    python benchmarks/peers.py lesions|ours|decode SIDE MASK ...       one map of the masks of one image

The first three print the seconds that their loop took, without the start-up; the others print their peak memory in MB.
`lesions-idle`, `ours-idle` and `decode-idle` import the same modules but do not do the work.
"""

from __future__ import annotations

import csv
import resource
import sys
import time
from pathlib import Path


def draw_table(how: str, root: str, table: str, folder: str) -> None:
    """Use csv, scipy and np.save: one file per image, 224 x 224."""
    import numpy as np
    from PIL import Image
    from scipy.stats import gaussian_kde, multivariate_normal

    began = time.perf_counter()
    paths = dict(line.split() for line in (Path(root) / "images.txt").read_text().splitlines())
    bubbles: dict[str, list[list[float]]] = {}
    with open(table, newline="") as stream:
        for row in csv.DictReader(stream):
            bubbles.setdefault(row["image"], []).append([float(row["x"]), float(row["y"]), float(row["radius"])])
    Path(folder).mkdir()
    for image, found in bubbles.items():
        width, height = Image.open(Path(root) / "images" / paths[image]).size
        x, y = np.meshgrid((np.arange(224) + 0.5) * width / 224, (np.arange(224) + 0.5) * height / 224)
        circles = np.array(found)
        if how == "scott":
            density = gaussian_kde(circles[:, :2].T)(np.stack([x.ravel(), y.ravel()])).reshape(224, 224)
        elif how == "radius":
            places = np.dstack([x, y])
            density = sum(
                multivariate_normal((left, top), (radius / 2) ** 2).pdf(places) * (radius / 2) ** 2
                for left, top, radius in circles
            )
        else:
            density = sum(
                np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * (radius / 2) ** 2)) for left, top, radius in circles
            )
        np.save(Path(folder) / f"{image}.npy", (density / density.max()).astype(np.float32))
    print(time.perf_counter() - began)


def lesions_map(masks: list[str], side: int) -> object:
    """Use PIL, float64 and scikit-image."""
    import numpy as np
    from PIL import Image
    from skimage.transform import resize

    union = np.maximum.reduce([np.asarray(Image.open(mask)).astype(np.float64) for mask in masks])
    return resize(union, (side, side), anti_aliasing=True)


def our_map(masks: list[str], side: int) -> object:
    from hkmap.files.masks import read_referred_mask
    from hkmap.maps.masks import masks_map

    return masks_map((read_referred_mask(mask) for mask in masks), [1.0] * len(masks), (side, side), "mean")


def decode(masks: list[str], side: int) -> object:
    """Decode the masks, which everybody who reads them must do."""
    import cv2
    import numpy as np

    return [cv2.imdecode(np.fromfile(mask, np.uint8), cv2.IMREAD_GRAYSCALE) is None for mask in masks] + [side]


DRAWINGS = {"lesions": lesions_map, "ours": our_map, "decode": decode}


def import_alone(name: str) -> None:
    import cv2  # noqa: F401
    import numpy  # noqa: F401, ICN001

    if name == "lesions":
        import PIL.Image
        import skimage.transform  # noqa: F401
        PIL.Image.preinit()
    if name == "ours":
        import hkmap.files.masks
        import hkmap.maps.masks  # noqa: F401


def peak_megabytes() -> float:
    """Return the peak memory of this process in MB; on Linux getrusage would include the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** 2       # macOS counts in bytes


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name in ("scott", "radius", "sums"):
        draw_table(name, *arguments)
    else:
        import_alone(name.removesuffix("-idle"))
        if not name.endswith("-idle"):
            DRAWINGS[name](arguments[1:], int(arguments[0]))
        print(peak_megabytes())
