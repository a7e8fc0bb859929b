"""Find the images below a folder.

``class_folders`` reads the layout ``<split>/<class>/**/*.jpg`` as torchvision's ``ImageFolder`` does: classes by name,
images by path, everything below a class folder, links to folders followed. Folders whose name begins with a dot,
which editors and notebooks leave behind, are no classes here. Images straight in the folder, without classes, are
taken when there is no class folder.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

from d2v_plugin.data.images.index import ImageIndex, build_index
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
THREADS = 8  # on a network file system listing waits rather than works


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def class_folders(folder: str) -> ImageIndex | None:
    """The images of one split, or None when there are none.

    Raises:
        UserError: a class folder without an image.
    """
    classes, loose = _list(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: walk(os.path.join(folder, name)), classes))
    if not any(found):
        return build_index(folder, [folder], [0] * len(loose), loose) if loose else None
    empty = [name for name, names in zip(classes, found, strict=True) if not names]
    if empty:
        more = f" (and {len(empty) - 1} other class folders)" if len(empty) > 1 else ""
        raise UserError(
            f"{os.path.join(folder, empty[0])}{more}: holds no image ({', '.join(EXTENSIONS)}); "
            "fill it or remove the folder"
        )
    if loose:
        logger.warning("%s: %d images beside the class folders are not used, %s first", folder, len(loose), loose[0])
    names = [os.path.join(name, path) for name, paths in zip(classes, found, strict=True) for path in paths]
    labels = [label for label, paths in enumerate(found) for _ in paths]
    return build_index(folder, [folder], [0] * len(names), names, labels, classes)


def class_names(folder: str) -> list[str]:
    """What class_folders would call the classes of ``folder``, without looking into them; none if it is no folder."""
    return _list(folder)[0] if os.path.isdir(folder) else []


def all_below(folders: list[str]) -> ImageIndex | None:
    """Every image below each of the folders, by path, without classes; None when there are none."""
    found = [walk(folder) for folder in folders]
    names = [name for names in found for name in names]
    numbers = [number for number, names in enumerate(found) for _ in names]
    return build_index(", ".join(folders), folders, numbers, names) if names else None


def walk(folder: str) -> list[str]:
    """Paths of the images below ``folder``, relative to it: folders by name, and images by name in each."""
    paths = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        below = os.path.relpath(parent, folder)
        paths += [name if below == "." else os.path.join(below, name) for name in sorted(names) if is_image(name)]
    return paths


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the images straight in ``folder``."""
    with os.scandir(folder) as entries:
        kept = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    return sorted(name for name, is_dir in kept if is_dir), sorted(
        name for name, is_dir in kept if not is_dir and is_image(name)
    )
