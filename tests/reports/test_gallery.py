"""`touchstone runs gallery` over a run that was scored for real: every image once, in order, with
its words; no page requests anything.
"""

import re

import pytest

from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.reports.tiles import tile_texts
from ray_app.runs import RunDirectory
from ray_app.runs.selection import RowFilter, selected_tables
from ray_app.scoring.gallery import make_gallery
from tests.make.page_reader import read
from tests.make.real_run import score_photos, write_photos
from tests.reports.profiled_run import PROMPTS, profiled_card, score_profiled, write_archive

PER_PAGE = 4
FILES = ["gallery.json", "index.html", "page-00002.html", "page-00003.html"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Nine images, a truncated one, and a text file; all flagged images have a generator's name."""
    folder = tmp_path_factory.mktemp("profiled")
    listed = write_archive(folder / "archive")
    pictures = [path.read_bytes() for path in sorted((folder / "archive").glob("photo-*.jpg"))]
    return score_profiled(profiled_card(folder, pictures, abstains=False), listed, folder / "run")


@pytest.fixture(scope="module")
def gallery(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("gallery") / "pages"
    assert make_gallery(run, str(out), per_page=PER_PAGE, quiet=True)["images"] == 11
    return out


@pytest.fixture(scope="module")
def rows(run):
    tables = selected_tables(RunDirectory.open(run), RowFilter())
    return [row for table in tables for row in table.to_pylist()]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def texts_of(folder):
    return [path.read_text() for path in sorted(folder.glob("*.html"))]


def names_in(folder):
    """The images of all pages, in order."""
    return re.findall(r'class="path" title="([^"]*)"', "".join(texts_of(folder)))


def test_gallery_has_one_tile_per_image_in_archive_order(rows, gallery):
    assert names_in(gallery) == [row["uri"] for row in rows]
    assert files_in(gallery) == FILES
    assert [text.count("data:image/jpeg") for text in texts_of(gallery)] == [4, 4, 1]


def test_pages_link_to_each_other_and_their_files_alone(gallery):
    pages = {path.name: path.read_text() for path in gallery.glob("*.html")}
    for name, text in pages.items():
        links = re.findall(r'href="([^"]+)"', text)
        assert {link for link in links if link.endswith(".html")} == pages.keys() - {name}
        files = [link for link in links if not link.endswith(".html") and link != "data:,"]
        assert len(files) == text.count('class="tile"')
        assert all(link.startswith("file:///") for link in files)
        assert text.count("has no measured error rates") == 1
        assert "default-src 'none'" in text
        assert not re.search(r"https?://|url\(|@import", text)
        assert text.count("<script") == 1


def test_tile_shows_known_and_predicted_words(rows, gallery):
    page = (gallery / "index.html").read_text()
    assert rows[1]["input"] == {"label": "fake", "prompt": PROMPTS[1], "generator": "sdxl"}
    for words in ("Generator, known", "Stable Diffusion XL 1.0 (sdxl)", "<b>golden</b> light"):
        assert words in read(page).text
    assert "<b>golden" not in page
    said = {one.term: one.said for one in tile_texts(rows[1])}
    assert said["Prompt, known"] == PROMPTS[1]
    assert said["Prompt, predicted"] == rows[1]["predicted_prompt"]


def test_unreadable_and_missing_images_have_tiles(gallery, tmp_path):
    last = read((gallery / "page-00003.html").read_text()).text
    assert "the file ends before the image does" in last
    assert last.count("No preview") == 2
    photos = write_photos(tmp_path / "photos", 3)
    run = score_photos(load_ensemble_card("tiny"), photos, tmp_path / "run")
    missing, changed, kept = sorted(photos.glob("photo-*.jpg"))
    missing.unlink()
    changed.write_bytes(kept.read_bytes())
    make_gallery(run, str(tmp_path / "out"), quiet=True)
    [page] = texts_of(tmp_path / "out")
    assert page.count("data:image/jpeg") == 1
    assert page.count("No preview") == 4


def test_interrupted_gallery_is_resumed_and_replaced(run, gallery, tmp_path, capsys):
    note, first = gallery / "gallery.json", gallery / "index.html"
    assert note.stat().st_mtime_ns <= first.stat().st_mtime_ns
    for path in (note, first):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    make_gallery(run, str(tmp_path), per_page=PER_PAGE, quiet=True)
    assert texts_of(tmp_path) == texts_of(gallery)
    assert main(["runs", "gallery", run, "--out", str(tmp_path), "--verdict", "fake"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{tmp_path}/index.html")
    assert files_in(tmp_path) == FILES[:2]


def test_gallery_has_the_filters_of_results(run, rows, tmp_path):
    flagged = [row for row in rows if row["verdict"] == "fake"]
    family = flagged[0]["generator_family"]
    chosen = RowFilter(verdict="fake", generator=family.upper())
    make_gallery(run, str(tmp_path / "family"), chosen, per_page=2, quiet=True)
    named = [row["uri"] for row in flagged if row["generator_family"] == family]
    assert names_in(tmp_path / "family") == named
    make_gallery(run, str(tmp_path / "most"), max_images=3, per_page=2, quiet=True)
    scored = [row for row in rows if row["score"] is not None]
    best = sorted(scored, key=lambda row: -row["score"])[:3]
    assert set(names_in(tmp_path / "most")) == {row["uri"] for row in best}


def test_gallery_rejects_missing_runs_names_and_other_folders(run, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        make_gallery(str(tmp_path / "none"), str(tmp_path / "out"))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_gallery(run, str(tmp_path), quiet=True)
