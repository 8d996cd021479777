from __future__ import annotations

from pathlib import Path
from typing import Any


def check_report(path: Any) -> None:
    if Path(path).suffix.lower() != ".html":
        raise ValueError(f"{path}: reports are saved as .html; got suffix {Path(path).suffix!r}")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {Path(path).parent} does not exist; make it first")


def write_report(p: Any, r: Any, m: Any) -> None:
    pass
