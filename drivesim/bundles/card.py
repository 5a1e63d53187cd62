"""The model card of a packed bundle: README.md with the front matter that Hugging Face reads."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivesim.bundles.public import public_command
from drivesim.bundles.summary import Summary, licences
from drivesim.errors import UserError

TEMPLATE = Path(__file__).with_name("card.md")
TAGS = ["drivesim", "autonomous-driving", "video-generation", "latent-diffusion", "synthetic-data"]
NO_DATA_SETS = ("videos", "images", "unknown")  # sources that are somebody's own files


@dataclass(frozen=True)
class Row:
    name: str
    better: str
    meaning: str
    values: list[str]


@dataclass(frozen=True)
class Metrics:
    """The results.json of `drivesim evaluate`, as a table: metrics down, sets of videos across."""

    sets: list[str]
    rows: list[Row]
    command: str
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path | str) -> "Metrics":
        """raises UserError for a file that is none"""
        try:
            found = json.loads(Path(path).read_text())
            sets, about = {each["name"]: each["metrics"] for each in found["sets"]}, found["metrics"]
            rows = [
                Row(key, told["better"], told["meaning"], [_value(metrics.get(key)) for metrics in sets.values()])
                for key, told in about.items()
                if any(key in metrics for metrics in sets.values())
            ]
            command = public_command(found.get("provenance", {}).get("command"))
            return cls(list(sets), rows, command, [str(line) for line in found.get("warnings", [])])
        except OSError as error:
            raise UserError(f"metrics={path} is not readable ({error.strerror})") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"metrics={path} is no results.json as `drivesim evaluate` writes it") from error


def _value(score: dict[str, Any] | None) -> str:
    """A number with its standard error; a dash where there is none."""
    if score is None or score.get("value") is None:
        return "-"
    error = score.get("error")
    return f"{score['value']:.4g}" + (f" ± {error:.2g}" if error is not None and math.isfinite(error) else "")


def model_card(summary: Summary, name: str, dtype: str = "", metrics: Metrics | None = None) -> str:
    """The text of README.md. dtype: what weights were brought to when packed, else empty"""
    from huggingface_hub import ModelCard, ModelCardData  # a second that nobody else need wait

    datasets = summary.datasets
    sources = dict.fromkeys(data.source for data in datasets if data.source not in NO_DATA_SETS)
    front = ModelCardData(
        license=summary.licence.lower() or "unknown",
        library_name="drivesim",
        pipeline_tag="text-to-video" if summary.reads else "image-to-video",
        tags=TAGS,
        datasets=list(sources) or None,
    )
    card = ModelCard.from_template(
        front,
        str(TEMPLATE),
        name=name,
        summary=summary,
        datasets=datasets,
        dtype=dtype,
        metrics=metrics,
        licences=licences(datasets),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"
