"""`touchstone train`: a recipe → a card that `score`, `evaluate` and `serve` take, or that of an
identifier or a describer.

`touchstone detectors fit`: labelled images → a head of our own on a published backbone, and its
card.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from ray_app.cli import options
from ray_app.cli.options import RECIPE
from ray_app.errors import ConfigError, InputError

if TYPE_CHECKING:
    from ray_app.archives.uri_list_rows import ListEntries
    from ray_app.detectors import Preprocessing
    from ray_app.detectors.linear_head import Classifier, FeatureCache, FeatureReader, Fit, Head


@click.command()
@click.argument("config_file", type=RECIPE, metavar="CONFIG")
@click.option(
    "--out",
    metavar="DIR",
    help="Where card, weights, figures and report go; any fsspec URL. The same command resumes there.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show steps, memory and data counts, and train nothing."
)
@click.option(
    "--push",
    metavar="URL",
    help="Also put card and weights there: any fsspec URL, or hf://ORGANISATION/NAME.",
)
@options.licence_option
@options.overrides
@options.as_json
def train(
    config_file: str,
    dry_run: bool,
    push: str | None,
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Train a detector of your own by a recipe.

    CONFIG is a shipped recipe by name (`touchstone recipes list`), or a YAML file of yours. A DIR that is finished is only reported, and
    one that was interrupted goes on from its last checkpoint.

    \b
    touchstone train quick --out runs/quick
    touchstone train configs/train/community-forensics.yaml --out s3://bucket/cf --set workers.count=8
    touchstone train openfake-swinv2 --dry-run
    touchstone score photos/ --out run --detector runs/quick/card.yaml
    touchstone train identify --out runs/identify
    touchstone train prompt-prefix --out runs/prompts
    """
    from ray_app.training.config import TrainConfig
    from ray_app.training.run import train as run_training

    if push is not None:
        assignments = (*assignments, f"export.push={json.dumps(push)}")
    config = options.configured(
        "train", config_file, TrainConfig, {"accept_licences": accepted, **given}, assignments
    )
    trained = run_training(config, dry_run=dry_run)
    options.echo_document(trained.facts, _lines(trained.facts, dry_run), as_json)
    return 0


def _lines(facts: dict[str, Any], dry_run: bool) -> list[str]:
    from ray_app.reports import attribution, training

    method = facts.get("method", "")
    if dry_run:
        from ray_app.training.config import PROFILING
        from ray_app.training.plan import plan_lines, source_lines

        lines = {
            "identify": attribution.identifier_plan_lines,
            "describe": attribution.describer_plan_lines,
        }.get(method, plan_lines)
        return [*lines(facts), *source_lines(facts["sources"], one_class=method in PROFILING)]
    told = {"identify": attribution.identifier_lines, "describe": attribution.describer_lines}.get(
        method, training.training_lines
    )
    return [*told(facts), *([f"pushed to {facts['pushed']}"] if "pushed" in facts else [])]


# columns that may say what belongs together; the first that a labels file has
GROUPINGS = ("group", "family", "source")


class LabelledImage(NamedTuple):
    """One image of the labels file: where it is, 1 = fake, and what it must not be parted from in
    validation ("" = nothing).

    `maker`: the generator of a fake or the source of a real image, "" where the file does not say.
    """

    uri: str
    label: int
    group: str
    maker: str


class Gathered(NamedTuple):
    """Usable images by the SHA-256 of their bytes, those that could not be read with the reason,
    and how many were there twice.
    """

    used: Mapping[str, LabelledImage]
    refused: Sequence[tuple[str, InputError]]
    doubles: int


@click.command("fit")
@click.argument("card", type=options.DETECTOR, metavar="CARD")
@click.argument("index", required=False, metavar="[INDEX]")
@click.option(
    "--labels",
    metavar="FILE",
    help="The same as INDEX: a CSV, JSONL or Parquet, or a folder with an index.parquet.",
)
@click.option(
    "--out",
    metavar="DIR",
    help="Where card.yaml, weights.pth and the cached features go.  [default: heads/CARD]",
)
@click.option(
    "--folds",
    metavar="COLUMN",
    help="The column whose groups no fold divides.  [default: the first of group, family, source that is there]",
)
@click.option(
    "--even",
    is_flag=True,
    help="Give each group of a class the same weight in the fit, however many images it has.",
)
@click.option(
    "--features",
    "kept",
    metavar="FILE",
    help="Where features are kept, for heads to share.  [default: DIR/features.npz]",
)
@click.option(
    "--install",
    is_flag=True,
    help="Also keep the head as CARD's own, so that CARD and ensembles that name it score with it.",
)
@click.option(
    "--classifier",
    type=click.Choice(["svm", "logistic"]),
    help="Which linear classifier.  [default: logistic for a card without a head of its own, else svm]",
)
@click.option(
    "--name", help="Name of the new detector; CARD's name and the classifier's otherwise."
)
@click.option(
    "--device", default="cpu", show_default=True, help="Where the backbone runs: cpu, cuda, cuda:0."
)
@options.licence_option
def fit(
    card: str,
    index: str | None,
    labels: str | None,
    out: str | None,
    folds: str | None,
    even: bool,
    kept: str | None,
    install: bool,
    classifier: "Classifier | None",
    name: str | None,
    device: str,
    accepted: tuple[str, ...],
) -> int:
    """Fit a linear head of your own on a published backbone.

    CARD names the backbone; `touchstone score --detector DIR/card.yaml` takes the head at once.

    INDEX has a row per image: `uri` (relative ones to the file), `label` (real, fake, 0 or 1), and maybe `group`, `family` or `source`,
    which no fold of the validation divides. Features are kept by the images' SHA-256: a second head on them reads no image again.

    \b
    touchstone detectors fit unifd --labels mine.csv --out heads/mine
    touchstone detectors fetch vfm-pe-l14
    touchstone detectors fit vfm-pe-l14 photos/index.parquet --folds family --install
    """
    import numpy as np

    from ray_app.config import validate
    from ray_app.detectors import DetectorCard, licences, linear_head, load_card

    if (index is None) == (labels is None):
        raise click.UsageError("name one file of labelled images, as INDEX or by --labels")
    base = load_card(card)
    licences.require_accepted(base, accepted)
    out = out or f"heads/{base.name.replace(':', '-')}"
    if "://" in out:
        raise ConfigError(f"--out {out}: a head and its card are written to a local folder")
    if install and not base.weights.fitted:
        raise ConfigError(
            f"--install: {base.name} has a head of its own, which is not replaced",
            hint="for cards whose head nobody publishes",
        )
    labels = labels_file(index or labels or "")
    rows, folder = read_labels(labels, folds), Path(out)
    if even and not any(row.group for row in rows):
        raise ConfigError(
            f"--even: {labels} does not say which group an image belongs to",
            hint="it needs a column group, family or source, or --folds COLUMN",
        )
    # log-odds, which an ensemble may average
    classifier = classifier or ("logistic" if base.weights.fitted else "svm")
    name = name or f"{base.name.replace(':', '-')}-{classifier}"
    # now rather than after hours of features
    validate(base.model_dump() | {"name": name}, DetectorCard, where="--name")
    linear_head.require_enough(np.array([row.label for row in rows]))
    reader = linear_head.FeatureReader(base, device=device)
    cache = linear_head.FeatureCache(Path(kept) if kept else folder / "features.npz", reader.key)
    gathered = gather(rows, base.preprocessing, reader, cache, labels=labels)
    _report_refused(gathered, len(rows))

    head, fitted, groups = _fitted_head(gathered, cache, classifier, labels, even=even)
    weights = folder / "weights.pth"
    sha256 = linear_head.save_head(weights, head)
    written = linear_head.write_card(
        folder / "card.yaml", base, name=name, weights=weights, sha256=sha256, fit=fitted
    )
    if base.terms != "permissive":
        # the same terms, which were accepted for the backbone
        licences.remember_licence(written.name, written.licence)
    click.echo(_summary(name, folder / "card.yaml", fitted, groups=groups))
    if install:
        click.echo(f"installed as {base.name}: {linear_head.install_head(base, weights)}")
    return 0


def labels_file(place: str) -> str:
    """A labels file, or the index.parquet in a folder that holds one."""
    inside = Path(place) / "index.parquet"
    return str(inside) if "://" not in place and inside.is_file() else place


def read_labels(place: str, folds: str | None = None) -> list[LabelledImage]:
    """Read the rows of a labels file, with every `uri` made absolute.

    Args:
        place: Path or fsspec URL of the file.
        folds: The column of the groups. By default the first of `GROUPINGS` that the file has.

    Raises:
        ConfigError: The file cannot be read, or a row is invalid. The message names file and row.
    """
    from ray_app.archives.label_tables import columns_hint, is_label_table
    from ray_app.archives.uri_list_rows import ListEntries
    from ray_app.datasets.label_reader import LabelFile
    from ray_app.storage import canonical, strip_secrets

    if not is_label_table(place):
        raise ConfigError(
            f"{place}: not a file of labels", hint="give a .csv, .tsv, .jsonl, or .parquet file"
        )
    # ListEntries resolves URIs, since it refuses those that a file from elsewhere may not name.
    file = LabelFile(place, resolves_uris=False)
    hint = columns_hint(file.list_columns())
    found = file.find_columns(
        ["uri", "label", "generator", *GROUPINGS, *([folds] if folds else [])]
    )
    if missing := {"uri", "label"} - set(found):
        raise ConfigError(f"{place}: labels need the column `{min(missing)}`", hint=hint)
    if folds is not None and folds not in found:
        raise ConfigError(f"{place}: --folds {folds}: there is no such column", hint=hint)
    column = folds or next((name for name in GROUPINGS if name in found), GROUPINGS[0])
    entries = ListEntries(strip_secrets(canonical(place)), "uri")
    rows = (row for table in file.tables(found) for row in table.to_pylist())
    labelled = [
        _labelled(f"{place}, row {number}", row, entries, column)
        for number, row in enumerate(rows, 1)
    ]
    if len({bool(row.group) for row in labelled}) > 1:
        raise ConfigError(
            f"{place}: some rows have a {column} and some have none",
            hint="give every row one, or drop the column",
        )
    return labelled


def _labelled(
    where: str, row: Mapping[str, str | None], entries: "ListEntries", column: str
) -> LabelledImage:
    if not row["uri"] or row["label"] is None:
        raise ConfigError(f"{where}: `uri` and `label` are needed, found {row!r}")
    is_fake = row["label"] == "fake"
    [item] = entries.members([{"uri": row["uri"]}])
    if item.refused is not None:
        raise ConfigError(f"{where}: {row['uri']}: {item.refused.detail}")
    makers = [row.get(name) for name in (("generator",) if is_fake else ("source", "generator"))]
    return LabelledImage(
        item.uri, int(is_fake), row.get(column) or "", next(filter(None, makers), "") or ""
    )


def gather(
    rows: Sequence[LabelledImage],
    preprocessing: "Preprocessing",
    reader: "FeatureReader",
    cache: "FeatureCache",
    *,
    labels: str = "",
) -> Gathered:
    """Bring the features of all readable images into the cache; what was extracted is kept even if
    this is interrupted.

    `labels`: the file that names them; on its own web server they may lie, wherever that is, else
    on the public Internet. Raises ConfigError where the same bytes are labelled both real and fake.
    """
    import numpy as np

    from ray_app.images import ImageLimits, decode_image
    from ray_app.storage import Fetcher

    fetcher, limits = Fetcher(signed=[labels] if labels else []), ImageLimits()
    used: dict[str, LabelledImage] = {}
    refused: list[tuple[str, InputError]] = []
    waiting: dict[str, Any] = {}

    def extract() -> None:
        if waiting:
            cache.add(
                dict(zip(waiting, reader.read(np.stack(list(waiting.values()))), strict=True))
            )
            waiting.clear()

    try:
        with click.progressbar(rows, label="reading images", file=sys.stderr) as found:
            for row in found:
                try:
                    data = fetcher.fetch(row.uri, "", limits.max_bytes)
                    sha256 = hashlib.sha256(data).hexdigest()
                    if sha256 not in cache and sha256 not in waiting:
                        waiting[sha256] = preprocessing.prepare(decode_image(data, limits).pixels)
                except InputError as error:
                    refused.append((row.uri, error))
                    continue
                first = used.setdefault(sha256, row)
                if first.label != row.label:
                    raise ConfigError(
                        f"{first.uri} and {row.uri} are the same image, labelled both real and fake"
                    )
                if len(waiting) == reader.slots:
                    extract()
        extract()
    finally:
        cache.save()
    return Gathered(used, refused, len(rows) - len(refused) - len(used))


def _fitted_head(
    gathered: Gathered, cache: "FeatureCache", classifier: "Classifier", labels: str, *, even: bool
) -> "tuple[Head, Fit, int]":
    """The head of all images that could be used, what its card says of the fit, and how many groups
    they are of (0: the file has none).
    """
    import numpy as np

    from ray_app.detectors import linear_head
    from ray_app.detectors.card_sections import SeenNames

    marks = np.array([row.label for row in gathered.used.values()])
    linear_head.require_enough(marks)
    features = np.stack([cache[sha256] for sha256 in gathered.used])
    groups = [row.group for row in gathered.used.values()]
    has_groups = any(groups)
    weighing = linear_head.even_weights(marks, groups) if even else None
    aucs = linear_head.cross_validated_auc(
        features, marks, classifier, groups if has_groups else None, weights=weighing
    )
    head = linear_head.fit_head(features, marks, classifier, weights=weighing)
    makers = [
        [row.maker for row in gathered.used.values() if row.label == label] for label in (1, 0)
    ]
    fitted = linear_head.Fit(
        classifier,
        Path(urlsplit(labels).path).name,
        int((marks == 0).sum()),
        int((marks == 1).sum()),
        aucs,
        SeenNames.of(*makers),
    )
    return head, fitted, len(set(groups)) if has_groups else 0


def _report_refused(gathered: Gathered, rows: int) -> None:
    if gathered.doubles:
        click.echo(f"{gathered.doubles} of {rows} rows repeat an image and count once", err=True)
    if gathered.refused:
        click.echo(
            f"{len(gathered.refused)} of {rows} images could not be read and are left out:",
            err=True,
        )
    for uri, error in gathered.refused:
        click.echo(f"  {uri}: {error.status}: {error.detail}", err=True)


def _summary(name: str, card: Path, fit: "Fit", *, groups: int) -> str:
    lines = [f"{name}: fitted to {fit.real} real and {fit.fake} fake images, written to {card}"]
    if fit.aucs:
        mean, low, high = sum(fit.aucs) / len(fit.aucs), min(fit.aucs), max(fit.aucs)
        unseen = (
            f"saw neither it nor any other of its group, of which there are {groups}"
            if groups
            else "did not see it"
        )
        folds = f"mean of {len(fit.aucs)} folds, {low:.3f} to {high:.3f}"
        lines.append(
            f"cross-validated ROC AUC {mean:.3f} ({folds}); each image was judged by a head that {unseen}"
        )
    else:
        lines.append("no cross-validated ROC AUC: every fold has images of one class only")
    lines.append(f"touchstone score SOURCE --detector {card} --out RUN")
    return "\n".join(lines)
