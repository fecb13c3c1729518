"""A game against the ensemble (`Arena`): people say of one picture after another whether it is real or made, and how both did is counted.

Its folder has a `key`, from which addresses of pictures follow, the same in all replicas and without a word of paths or labels; and
`guesses/`, a file with one JSON line (`GuessRow`) each, written whole and never again. Of who guessed nothing is kept.
"""

import asyncio
import hashlib
import json
import logging
import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from ray_app import archives
from ray_app.datasets import index, labelling
from ray_app.datasets.layouts.base import Folders
from ray_app.detectors.preprocessing import Preprocessing, Resize
from ray_app.errors import ConfigError, InputError
from ray_app.inference.small_pictures import thumbnail
from ray_app.metrics import intervals
from ray_app.serving import config, engine
from ray_app.serving.http.errors import Refusal
from ray_app.storage import Fetcher, Guard, Store, canonical, strip_secrets

ROUND, SIDE_PX = 20, 1024
_VIEW = Preprocessing(resize=Resize(mode="thumbnail", size=SIDE_PX), center_crop=SIDE_PX, pad="corner")
_CUT = "the arena takes the first %d files of %s; arena.limit takes more"
_log = logging.getLogger(__name__)
_PICTURE, _MAKER = attrgetter("image_id"), attrgetter("label", "generator")


class GuessRow(NamedTuple):
    """`label`, `generator`: null where unknown. `verdict`, `score`: of the ensemble with this fingerprint."""

    image_id: int
    label: str | None
    generator: str | None
    guess: str
    verdict: str | None
    score: float | None
    ensemble: str


class Arena:
    """The pictures of a source and what was guessed of them. Raises ConfigError and StorageError where a place cannot be read or written.

    A picture is known by 32 hex digits; of others, methods raise Refusal not_found.
    """

    def __init__(self, settings: config.ArenaConfig, scorer: engine.EndpointScorer, max_bytes: int) -> None:
        self._scorer, self._max_bytes, self._most = scorer, max_bytes, settings.most_guesses
        self._store = Store.open(settings.guesses or f"{canonical(archives.places_of([settings.at])[0]).rstrip('/')}.arena")
        members, guard = _labelled(settings.at, self._store.url, settings.limit)
        self._fetcher = Fetcher(guard=guard)
        self._store.create("key", secrets.token_bytes(32))
        key = self._store.read("key")
        self._pictures = {hashlib.blake2b(str(one.image_id).encode(), key=key, digest_size=16).hexdigest(): one for one in members}
        self._unreadable, self._kept = set[str](), dict[str, GuessRow]()
        self._said: dict[tuple[int, str], tuple[str | None, float | None, str]] = {}

    def draw(self) -> list[str]:
        """The pictures of a round: of those that were guessed least, at random."""
        guessed = Counter(row.image_id for row in self._rows())
        turn = {name: (guessed[one.image_id], secrets.randbits(32)) for name, one in self._pictures.items()}
        return sorted(turn.keys() - self._unreadable, key=turn.__getitem__)[:ROUND]

    async def show(self, name: str) -> bytes:
        """A picture for people: upright, no side over SIDE_PX, a JPEG with nothing else of the file. Raises InputError."""
        try:
            prepared = await self._scorer.view(await self._read(name), _VIEW)
        except InputError:
            self._unreadable.add(name)
            raise
        facts, [pixels] = prepared.facts, prepared.pixels
        assert pixels is not None, "the view has one size"
        image = Image.fromarray(pixels[_VIEW.image_area(facts.width or 1, facts.height or 1)])
        image.getexif()[0x0112] = facts.orientation or 1
        return await asyncio.to_thread(thumbnail, ImageOps.exif_transpose(image), SIDE_PX)

    async def guess(self, name: str, guess: Literal["real", "fake"]) -> dict[str, Any]:
        """Keep a guess, then tell what the picture is. The ensemble is asked once. Raises InputError; Refusal where no more are kept."""
        picture, ensemble = self._picture(name), (await self._scorer.ensemble(None)).fingerprint
        if len(self._kept) >= self._most:
            raise Refusal("forbidden", f"the arena keeps no more than {self._most} guesses")
        asked = (picture.image_id, ensemble)
        if asked not in self._said:
            await asyncio.to_thread(self._rows)  # maybe by another replica
        if asked not in self._said:
            answer = await self._scorer.score(await self._read(name))
            self._said[asked] = (answer.verdict, answer.score, answer.ensemble.fingerprint)
        row = GuessRow(picture.image_id, picture.input.get("label"), picture.input.get("generator"), guess, *self._said[asked])
        file = f"{secrets.token_hex(12)}.jsonl"
        await asyncio.to_thread(self._store.write, f"guesses/{file}", json.dumps(row._asdict()).encode() + b"\n")
        self._kept[file] = row
        return {"label": row.label, "generator": row.generator, "verdict": row.verdict, "score": row.score}

    async def standings(self) -> dict[str, Any]:
        """How people and the ensemble that is served did on the same pictures, on all and by generator: shares that were right, with the
        ends of their 95 % intervals. Each picture counts once, in intervals too, since guesses of one are alike.
        """
        served, rows = await self._scorer.ensemble(None), await asyncio.to_thread(self._rows)
        told = sorted((row for row in rows if row.label and row.ensemble == served.fingerprint), key=_MAKER)
        groups = [("all", told)] * bool(told) + [(generator, list(made)) for (_, generator), made in groupby(told, _MAKER)]
        return {"ensemble": served.name, "rows": [_standing(generator, made) for generator, made in groups]}

    def labels(self) -> str:
        """A CSV for `touchstone runs audit`: the label of each guessed picture; where it is unknown, what most people said (`by`)."""
        lines = ["image_id,label,by,guesses,guessed_fake\n"]
        for rows in _by_picture(self._rows()):
            fake, known = sum(row.guess == "fake" for row in rows), rows[-1].label
            said = "unsure" if 2 * fake == len(rows) else "fake" if 2 * fake > len(rows) else "real"
            lines.append(f"{rows[0].image_id},{known or said},{'source' if known else 'people'},{len(rows)},{fake}\n")
        return "".join(lines)

    def _rows(self) -> list[GuessRow]:
        """Those of all replicas."""
        new = [file for file in self._store.names("guesses") if file not in self._kept]
        with ThreadPoolExecutor(16) as pool:
            self._kept |= zip(new, pool.map(lambda file: GuessRow(**json.loads(self._store.read(f"guesses/{file}"))), new), strict=True)
        rows = list(self._kept.values())
        self._said |= {(row.image_id, row.ensemble): row[4:] for row in rows}
        return rows

    def _picture(self, name: str) -> archives.ManifestMember:
        if name not in self._pictures:
            raise Refusal("not_found")
        return self._pictures[name]

    async def _read(self, name: str) -> bytes:
        reader = archives.MemberReader(self._fetcher, max_bytes=self._max_bytes)
        [(_, data)] = await asyncio.to_thread(list, reader.read([self._picture(name)]))
        if isinstance(data, InputError):
            raise data
        return data


def _by_picture(rows: list[GuessRow]) -> list[list[GuessRow]]:
    return [list(one) for _, one in groupby(sorted(rows, key=_PICTURE), _PICTURE)]


def _standing(generator: str, rows: list[GuessRow]) -> dict[str, Any]:
    pictures = _by_picture(rows)
    n, right = len(pictures), sum(one[-1].verdict == one[-1].label for one in pictures)
    share = sum(sum(row.guess == row.label for row in one) / len(one) for one in pictures) / n
    figures = {"people": (share, *intervals.share_interval(share, n)), "ensemble": (right / n, *intervals.proportion_interval(right, n))}
    return {"generator": generator, "pictures": n, "guesses": len(rows), **figures}


def _labelled(at: str, own: str, limit: int) -> tuple[list[archives.ManifestMember], Guard]:
    """The images of an index or another source, with `label` and `generator` as `input` where they are known, and how they are read."""
    if index.is_index(at):
        rows = index.read_index(at)
        if len(rows) > limit:
            _log.warning(_CUT, limit, strip_secrets(at))
        return archives.member_rows(rows.slice(0, limit)), archives.guard_of(Store.open(at))
    archive, members = archives.Archive([at], skip=[own]), list[archives.ManifestMember]()
    for number, item in enumerate(archive):
        if number == limit:
            _log.warning(_CUT, limit, strip_secrets(at))
            break
        known: dict[str, Any] | None = {}
        with suppress(ConfigError):  # in no folder with the name of a label
            labels = labelling.labels_of(item, Folders())
            known = {"label": labels.label, "generator": labels.generator} if labels else None
        if known is not None:  # else no image
            members.append(replace(archives.as_member(item), input=known))
    return members, archive.fetcher.guard
