"""An arena of a few pictures behind all guards, over HTTP."""

from contextlib import contextmanager

from PIL import Image

from ray_app.serving import ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.metrics import Meter
from tests.serving.http.live import serving
from tests.serving.in_process import client
from tests.serving.page_browser import encoded

TRUTHS = {"real/cam": 2, "fake/gen-a": 2, "fake/gen-b": 1, "unsorted": 2}


def pictures(folder):
    """Seven pictures, one of them turned by its EXIF, and two files that are none."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker's name"
    for seed, (place, count) in enumerate(TRUTHS.items()):
        (folder / place).mkdir(parents=True)
        for number in range(count):
            options = {"exif": exif} if place == "real/cam" else {}
            (folder / place / f"{number}.jpg").write_bytes(encoded(10 * seed + number, **options))
    (folder / "unsorted" / "notes.txt").write_text("no picture")
    (folder / "unsorted" / "broken.jpg").write_bytes(encoded(99)[:300])
    return folder


def application(scorer, folder, **settings):
    """One replica: its pictures and those guesses that are kept are read anew."""
    arena = {"at": str(folder), **settings.pop("arena", {})}
    return create_app(ServeConfig(ensembles=("tiny",), arena=arena, **settings), scorer, Meter())


@contextmanager
def arena(scorer, folder, **settings):
    """A client of such a replica."""
    with serving(application(scorer, folder, **settings)) as port, client(f"http://127.0.0.1:{port}") as asking:
        yield asking


def play(asking, guess):
    """One round: what was told of every picture that can be seen, by its name. `guess`: of a name."""
    names = asking.get("/arena/round").json()
    seen = [name for name in names if asking.get(f"/arena/pictures/{name}").status_code == 200]
    return {name: asking.post(f"/arena/guesses/{name}", params={"guess": guess(name)}).json() for name in seen}
