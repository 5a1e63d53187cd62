"""The windows whose labels a detector contradicts most: boxes asked for drawn solid, boxes found dashed."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from drivesim.generation.draw import contact_sheet, save_png
from eval.media import draw_boxes
from eval.videos import resize

WIDTH, COLUMNS = 384, 3  # pixels a picture; three fit a screen
FOUND_COLOUR, DASH_PX = (86, 180, 233), 5


@dataclass
class Worst:
    """Holds a picture of each window of the lowest recall that it was offered, at most `most`; of equals the first."""

    most: int = 12
    _kept: list[tuple[float, int, str, np.ndarray]] = field(default_factory=list)
    _offers: int = 0

    def offer(self, recall: float, caption: str, picture: np.ndarray, asked: np.ndarray, found: np.ndarray) -> None:
        """picture [H, W, 3] uint8 RGB; asked, found [n, 4] fractions. A window in which all is found is not taken."""
        self._offers += 1
        if recall == 1 or (len(self._kept) == self.most and recall >= self._kept[-1][0]):
            return
        small = resize(picture, (round(picture.shape[0] * WIDTH / picture.shape[1]), WIDTH))
        drawn = draw_dashed(draw_boxes(small, asked), found)
        self._kept = sorted([*self._kept, (recall, self._offers, caption, drawn)], key=lambda kept: kept[:2])[
            : self.most
        ]

    def save(self, path: Path) -> bool:
        """Write the sheet; False if there is nothing to show. Pictures of another size are brought to the first's."""
        if not self._kept:
            return False
        height, width = self._kept[0][3].shape[:2]
        pictures = [resize(picture, (height, width)) for *_, picture in self._kept]
        save_png(contact_sheet(pictures, COLUMNS, [caption for _, _, caption, _ in self._kept]), path)
        return True


def draw_dashed(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with boxes [n, 4] (fractions) outlined in dashes."""
    image, scale = image.copy(), np.tile(image.shape[1::-1], 2)
    for x1, y1, x2, y2 in (boxes * scale).round().astype(int).tolist():
        for x in range(x1, x2, 2 * DASH_PX):
            for y in (y1, y2 - 1):
                cv2.line(image, (x, y), (min(x + DASH_PX, x2) - 1, y), FOUND_COLOUR, 1)
        for y in range(y1, y2, 2 * DASH_PX):
            for x in (x1, x2 - 1):
                cv2.line(image, (x, y), (x, min(y + DASH_PX, y2) - 1), FOUND_COLOUR, 1)
    return image
