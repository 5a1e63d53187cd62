"""Results as files for programs: JSON with all there is to know, CSV with the table."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drivesim.files import atomic_path


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV of rows with the same keys; unknown numbers are left empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(finite(rows))


def finite(value: Any) -> Any:
    """JSON has no nan: unknown numbers become null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
