"""``dartsfast doctor --deep``: every operator on every device that kernels serve, against its oracle."""

from __future__ import annotations

from bench.gpu.stage import Check
from dartsfast.doctor import deep_diagnosis, diagnosis


def run(check: Check) -> None:
    """Note every line of the doctor's; what is not ok is wrong."""
    for what, how in diagnosis():
        print(f"{what:<20}  {how}")
    for what, how in deep_diagnosis():
        check.row(operator=what, verdict=how)
        if not how.startswith("ok"):
            check.fail(f"{what}: {how}")
    place = check.place.type
    if not any(row["operator"].endswith(f" on {place}") for row in check.rows):
        check.fail(f"no operator was checked on {place}")
