"""Seconds and peak memory of `sarmatch register` on a generated pair of scenes, by their area.

    python -m companion.benchmarks.scenes [--side 10980] [--fractions 0.25 0.5 1] [--model affine] [--workers 1]

Each scene is one generated block mirrored next to itself; the georeference of the optical image is off by SHIFT_PX.
Each registration runs in a process of its own. `off_px` is how far it ends from the truth.
"""

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import tyro
from rasterio import Affine
from rasterio.windows import Window

from sarmatch.data.synthetic import render_pair
from sarmatch.scenes.pipeline import register
from sarmatch.scenes.settings import Model

BLOCK = 1536
SHIFT_PX = (23.4, -17.2)


def measured(folder: Path, model: Model, workers: int) -> dict[str, float]:
    """Seconds, peak memory (GB, of this process or one it started), windows and error (px) of one registration."""
    sar, optical, registered = (folder / f"{name}.tif" for name in ("sar", "optical", "registered"))
    start = time.perf_counter()
    done = register(sar, optical, registered, model, workers=workers)
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    off = float(np.hypot(*(np.array(done.transform.coefficients[0]) - SHIFT_PX)))
    return {"seconds": seconds, "peak_gb": peak, "windows": done.agreement.n_windows, "off_px": off}


def write_scene(path: Path, block: np.ndarray, side: int, shift: tuple[float, float] = (0.0, 0.0)) -> None:
    """Write a block (C, N, N) mirrored over a scene of `side` px, strip by strip: a child's peak begins at ours."""
    transform = Affine(10, 0, 500_000 + 10 * shift[0], 0, -10, 5_000_000 - 10 * shift[1])
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    profile = {"driver": "GTiff", "count": len(block), "height": side, "width": side, "dtype": block.dtype}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile, **tiling) as file:
        for j, y in enumerate(range(0, side, BLOCK)):
            rows = block[:, ::-1] if j % 2 else block
            for i, x in enumerate(range(0, side, BLOCK)):
                part = (rows[:, :, ::-1] if i % 2 else rows)[:, : side - y, : side - x]
                file.write(part, window=Window(x, y, part.shape[2], part.shape[1]))


def main(
    side: int = 10_980, fractions: tuple[float, ...] = (0.25, 0.5, 1.0), model: Model = "affine", workers: int = 1
) -> None:
    """Print a table for scenes with these fractions of the area of a square of `side` px."""
    from companion.benchmarks import scenes  # by its name: another process cannot look up what is in __main__

    pair = render_pair(0, BLOCK)
    blocks = [(image.numpy() * 255).round().astype(np.uint8) for image in (pair.sar, pair.optical)]
    rows = []
    for fraction in fractions:
        length = round(side * fraction**0.5)
        with tempfile.TemporaryDirectory() as folder:
            write_scene(Path(folder, "sar.tif"), blocks[0], length)
            write_scene(Path(folder, "optical.tif"), blocks[1], length, SHIFT_PX)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(scenes.measured, Path(folder), model, workers).result()
        per_mpx = row["seconds"] / (length**2 / 1e6)
        rows.append({"fraction": fraction, "side_px": length} | row | {"s_per_mpx": per_mpx})
        print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)
    print(f"peak memory {max(row['peak_gb'] for row in rows):.2f} GB, the bound is 4 GB")


if __name__ == "__main__":
    tyro.cli(main)
