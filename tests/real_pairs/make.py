"""Write the pairs of this folder from their sources: `python tests/real_pairs/make.py FOLDER`.

FOLDER holds the original files and a manifest.csv that names them; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio

from sarmatch.data import Pair, open_folder

HERE = Path(__file__).parent
DATASETS = ("sen12ms-cr", "terramesh")


def make(source: Path, target: Path = HERE) -> None:
    """One GeoTIFF of 8 bits an image, scaled as the package reads the originals, and the manifest."""
    pairs = open_folder(source, datasets=DATASETS)
    rows = []
    for pair in pairs:
        files = {"sar": f"sar/{pair.id}.tif", "optical": f"optical/{pair.id}.tif"}
        for name, file in files.items():
            (target / file).parent.mkdir(exist_ok=True)
            _write(target / file, (getattr(pair, name).numpy() * 255).round().astype(np.uint8), pair)
        rows.append({"id": pair.id, **files, "dataset": pair.dataset, "scene": pair.scene.split("/")[1]})
    pd.DataFrame(rows).to_csv(target / "manifest.csv", index=False)


def _write(path: Path, image: np.ndarray, pair: Pair) -> None:
    options = {"compress": "deflate", "zlevel": 9, "predictor": 2, "crs": pair.crs, "transform": pair.transform}
    height, width = image.shape[1:]
    with rasterio.open(path, "w", "GTiff", width, height, len(image), dtype="uint8", **options) as file:
        file.write(image)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
