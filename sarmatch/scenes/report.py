from typing import Any


def check_report(p: Any) -> None:
    pass


def write_report(p: Any, r: Any, m: Any) -> None:
    pass
