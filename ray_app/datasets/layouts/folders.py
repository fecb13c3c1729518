"""Labels in the names of folders: …/real/… and …/fake/…, or 0_real and 1_fake. Knows paths; reads nothing."""

from ray_app.archives import Listed
from ray_app.datasets.labels import Label, Labels, real_of
from ray_app.datasets.layouts.layout import Layout, folders_of, is_no_image, place_of, where
from ray_app.errors import ConfigError

FOLDER_LABELS: dict[str, Label] = {"real": "real", "0_real": "real", "fake": "fake", "1_fake": "fake"}


class Folders(Layout):
    """The innermost folder of such a name says the label; folders above it are not looked at for one.

    `generator`: of all fakes; else the folder `generator_folder` steps from that folder: 1 the next below, −1 the one above. Where there
    is none, fakes are of `unknown`. `split_folder` counts alike; null = no splits. A zip or tar is a folder too, a numbered shard is not.
    """

    generator: str | None = None
    generator_folder: int = 1
    split_folder: int | None = None

    def labels(self, item: Listed) -> Labels | None:
        """From the path, also that in a zip or tar."""
        if is_no_image(place_of(item)):
            return None
        folders, at = labelled_folder(item)
        label = FOLDER_LABELS[folders[at].lower()]
        near = _step(folders, at, self.generator_folder)
        split = None if self.split_folder is None else _step(folders, at, self.split_folder)
        return Labels(label, real_of(near) if label == "real" else self.generator or near or "unknown", split=split)


class CommunityForensicsFolders(Folders):
    """The folders that Community Forensics trains on: `<generator>/<real|fake>/<file>`, with an index.csv that it makes itself.

    Source: specs/detectors.md §7a.
    """

    generator_folder: int = -1


def labelled_folder(item: Listed) -> tuple[list[str], int]:
    """The folders of a member's path, and which of them is the innermost that says a label. Raises ConfigError where none does."""
    folders = folders_of(item)
    found = [number for number, name in enumerate(folders) if name.lower() in FOLDER_LABELS]
    if not found:
        raise ConfigError(
            f"{where(item)}: in no folder called {', '.join(FOLDER_LABELS)}", hint="labels are never guessed; --exclude leaves it out"
        )
    return folders, found[-1]


def _step(folders: list[str], at: int, steps: int) -> str | None:
    place = at + steps
    return folders[place] if 0 <= place < len(folders) and folders[place] else None
