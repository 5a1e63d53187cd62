"""Every folder below one, linked ones too, each once: links that lead back do not go round in circles."""

import os
from collections.abc import Iterator
from pathlib import Path


def folders_below(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like `os.walk`: folder, names of its folders and of its files, sorted; hidden ones are left out.

    A folder that can be reached in several ways is given once, under its own name rather than a link's. A link to
    a folder around `root` is not followed, and what may not be read is passed over.
    """
    seen: set[tuple[int, int]] = set()
    waiting, linked = [root], list[Path]()
    around = root.resolve().parents
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            status = folder.stat()
            entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda e: e.name)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        own = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        links = [entry.name for entry in entries if entry.is_symlink() and os.path.isdir(entry.path)]
        inside = {*own, *links}
        yield folder, sorted(inside), [entry.name for entry in entries if entry.name not in inside]
        waiting += [folder / name for name in reversed(own)]
        linked += [folder / name for name in links if (folder / name).resolve() not in around]
