"""What the tables of an export say of generated pictures beyond their format: fields that readers of it pass over."""

from typing import Any

from drivesim.data.store import ClipStore


def marks(store: ClipStore, clip: str) -> list[dict[str, Any]]:
    """Of every frame that it is synthetic, and what the label check found around it; nothing of other clips.

    label_recall is None where nobody looked, or nothing was asked for.
    """
    row, frames = store.row(clip), store.frames(clip)
    if not row.synthetic:
        return [{}] * len(frames)
    recalls = frames["label_recall"].astype(object).where(frames["label_recall"].notna(), None)
    return [
        {"synthetic": True, "label_recall": recall, "label_ok": ok}
        for recall, ok in zip(recalls, frames["label_ok"].tolist(), strict=True)
    ]
