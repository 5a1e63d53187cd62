"""One self-contained HTML page out of sections: tables, figures and clips that play in step. It fetches nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from drivesim.files import atomic_path
from eval.media import data_uri


@dataclass(frozen=True)
class Cell:
    """One cell. note: small print under it; best: marks the winner of a column."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of Cells or plain strings, of which the first names the row.

    hints  one a column, shown when the pointer rests on its head
    muted  row numbers drawn as references
    """

    header: Sequence[str]
    rows: Sequence[Sequence["Cell | str"]]
    caption: str = ""
    hints: Sequence[str] = ()
    muted: Sequence[int] = ()

    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A finished piece of HTML, such as `media.picture` or `media.line_chart` return, with its caption."""

    html: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Clips:
    """H.264 clips of the same moments, shown side by side and played in step; label -> file content."""

    title: str
    videos: Mapping[str, bytes]

    def sources(self) -> dict[str, str]:
        return {label: data_uri(payload, "video/mp4") for label, payload in self.videos.items()}


@dataclass(frozen=True)
class Section:
    """One part of the page, drawn in the order of its fields. Text is plain; each string is a paragraph.

    html  trusted markup, put in as it is
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    clips: Sequence[Clips] = ()
    figures: Sequence[Figure] = ()
    html: str = ""
    warnings: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """A page. provenance: name -> value, printed at its end."""

    title: str
    lead: str
    sections: Sequence[Section]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        environment = Environment(
            loader=PackageLoader("eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True)  # fmt: skip
        return environment.get_template("report.html.j2").render(report=self)

    def write(self, path: Path | str) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(self.render(), encoding="utf-8")
