"""Files of matches: tables and points for a GIS, written part by part, so matches of a scene need not fit memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rasterio.warp

from sarmatch.io import atomic_path, check_output

if TYPE_CHECKING:
    from sarmatch.matching.matches import Matches

GEOREFERENCE = ("sar_transform", "sar_crs", "optical_transform", "optical_crs")  #: Kept beside the table by Parquet.

Writer = Callable[["Iterator[Matches]", "bool | None", Path], None]


def write_matches(path: str | os.PathLike[str], parts: Iterable[Matches], overlaps: bool | None = None) -> None:
    """Write the matches of all parts of a pair into one file; an existing file is replaced in one step.

    Args:
        parts: at least one, empty ones included; one at a time is held.
        overlaps: the decision on the pair.

    Raises:
        as `matches_writer`.
    """
    write = matches_writer(path)
    with atomic_path(path) as temporary:
        write(iter(parts), overlaps, temporary)


def matches_writer(path: str | os.PathLike[str]) -> Writer:
    """The writer for a file of matches, also to check a path before a long computation.

    Raises:
        as `sarmatch.io.check_output`; ValueError also where the suffix needs a package that is not installed.
    """
    writers: dict[str, Writer] = {
        ".csv": _write_csv,
        ".parquet": _write_parquet,
        ".geojson": _write_geojson,
        ".gpkg": _write_gpkg,
    }
    suffix = check_output(path, "matches", writers).suffix.lower()
    if suffix == ".gpkg":
        _pyogrio()
    return writers[suffix]


def _write_csv(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    columns = None
    with open(path, "w", encoding="utf-8", newline="") as file:
        for frame in _filled(parts):
            frame = _decided(frame, overlaps)
            columns = list(frame.columns) if columns is None else columns
            frame.reindex(columns=columns).to_csv(file, index=False, header=file.tell() == 0)


def _write_parquet(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    writer = None
    try:
        for frame in _filled(parts):
            frame = _decided(frame, overlaps)
            if overlaps is not None:
                frame.attrs["overlaps"] = bool(overlaps)
            table = pa.Table.from_pandas(frame, preserve_index=False, schema=writer and writer.schema)
            writer = writer or pa.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _write_geojson(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    """One point a match in WGS84 (RFC 7946), at its place in the SAR image, or else in the optical one."""
    with open(path, "w", encoding="utf-8") as file:
        separator = ""
        for matches in _nonempty(parts):
            if not separator:
                *_, note = _places(matches)
                head = {
                    "type": "FeatureCollection",
                    "note": note,
                    "overlaps": None if overlaps is None else bool(overlaps),
                }
                file.write(json.dumps(head)[:-1] + ', "features": [')
            for feature in _features(matches):
                file.write(separator + json.dumps(feature, allow_nan=False))
                separator = ", "
            separator = separator or " "
        file.write("]}")


def _features(matches: Matches) -> Iterator[dict[str, Any]]:
    x, y, _ = _places(matches)
    rows = matches.to_frame().astype(float).to_dict("records")
    for px, py, row in zip(x, y, rows, strict=True):
        yield {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [float(px), float(py)]},
            "properties": {name: value if np.isfinite(value) else None for name, value in row.items()},
        }


def _write_gpkg(parts: Iterator[Matches], overlaps: bool | None, path: Path) -> None:
    """Points in the SAR image's own reference system where it has one, else as `_places`."""
    pyogrio = _pyogrio()
    path.unlink(missing_ok=True)
    for number, matches in enumerate(_nonempty(parts)):
        frame = _decided(matches.to_frame(), overlaps)
        located = matches.sar_crs is not None and matches.sar_transform is not None
        if located:
            x, y, crs = frame["map_x_sar"].to_numpy(), frame["map_y_sar"].to_numpy(), matches.sar_crs
        else:
            x, y, note = _places(matches)
            crs = "EPSG:4326" if note.startswith("WGS84") else None
        options = {"geometry_type": "Point", "crs": crs, "driver": "GPKG", "layer": "matches", "append": number > 0}
        fields = list(frame.columns)
        pyogrio.raw.write(path, _points(x, y), [frame[name].to_numpy() for name in fields], fields, **options)


def _points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points as well-known binary, (N,) of bytes."""
    record = np.zeros(len(x), dtype=[("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])
    record["order"], record["kind"], record["x"], record["y"] = 1, 1, x, y
    return np.array([row.tobytes() for row in record], dtype=object)


def _pyogrio() -> Any:
    try:
        import pyogrio
        import pyogrio.raw
    except ImportError as error:
        raise ValueError(
            "files .gpkg need the package pyogrio: pip install 'sarmatch[gis]'; or save .geojson"
        ) from error
    return pyogrio


def _nonempty(parts: Iterator[Matches]) -> Iterator[Matches]:
    """Parts with matches; where none has any, the last of them, so that a file is written."""
    last, found = None, False
    for part in parts:
        if len(part):
            found = True
            yield part
        last = part
    if not found and last is not None:
        yield last


def _filled(parts: Iterator[Matches]) -> Iterator[pd.DataFrame]:
    for matches in _nonempty(parts):
        frame = matches.to_frame()
        for name in GEOREFERENCE:
            value = getattr(matches, name)
            if value is not None:
                frame.attrs[name] = value if isinstance(value, str) else list(value)[:6]
        yield frame


def _decided(frame: pd.DataFrame, overlaps: bool | None) -> pd.DataFrame:
    """The table with the decision on its pair in every row where there is one."""
    if overlaps is None:
        return frame
    decided = frame.assign(overlaps=bool(overlaps))
    decided.attrs = frame.attrs
    return decided


def _places(matches: Matches) -> tuple[np.ndarray, np.ndarray, str]:
    for image in ("sar", "optical"):
        crs = getattr(matches, f"{image}_crs")
        if crs is not None and getattr(matches, f"{image}_transform") is not None:
            known = matches.map_coordinates()
            places = rasterio.warp.transform(crs, "EPSG:4326", known[f"map_x_{image}"], known[f"map_y_{image}"])
            return np.asarray(places[0]), np.asarray(places[1]), f"WGS84 positions in the {image} image"
    note = "not georeferenced: coordinates are (x, y) pixels of the SAR image, y pointing down"
    return matches.xy_sar[:, 0], matches.xy_sar[:, 1], note
