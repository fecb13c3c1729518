"""Two small detectors that say different things of one image, as cards on disk."""

import shutil

import yaml

from ray_app.config import config_root


def write_two(folder, *, own_pool=False):
    """Paths of `cheap` and of `slow`, which sees no more than the centre 96 pixels (in a process of
    its own, if wanted).
    """
    shipped = config_root() / "detectors"
    shutil.copy(shipped / "touchstone-tiny.safetensors", folder)
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    closer = {**card["preprocessing"], "center_crop": 96}
    (folder / "cheap.yaml").write_text(yaml.safe_dump({**card, "name": "cheap"}))
    (folder / "slow.yaml").write_text(
        yaml.safe_dump({**card, "name": "slow", "own_pool": own_pool, "preprocessing": closer})
    )
    return str(folder / "cheap.yaml"), str(folder / "slow.yaml")
