"""`touchstone runs gallery` over a run that was scored for real: every image once, in order, with
its words; no page asks for anything.
"""

import json
import re

import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError
from ray_app.reports.gallery import page_name
from ray_app.reports.tiles import tile_texts
from ray_app.runs import RunDirectory
from ray_app.runs.selection import RowFilter, selected_tables
from ray_app.scoring.gallery import make_gallery
from tests.reports.page_reader import read
from tests.reports.profiled_run import PROMPTS, profiled_card, score_profiled, write_archive
from tests.runs.real_run import photos, plain_run  # noqa: F401

PER_PAGE = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Nine pictures, one that ends early, one that is none; all that are flagged have a generator's
    name.
    """
    folder = tmp_path_factory.mktemp("profiled")
    listed = write_archive(folder / "archive")
    pictures = [path.read_bytes() for path in sorted((folder / "archive").glob("photo-*.jpg"))]
    return score_profiled(profiled_card(folder, pictures, abstains=False), listed, folder / "run")


@pytest.fixture(scope="module")
def gallery(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("gallery") / "pages"
    assert make_gallery(run, str(out), per_page=PER_PAGE, quiet=True)["images"] == 11
    return out


def names_in(folder):
    """The members of all pages, in order."""
    pages = [
        page_name(number)
        for number in range(1, 1 + json.loads((folder / "gallery.json").read_text())["pages"])
    ]
    return [
        name
        for page in pages
        for name in re.findall(r'class="path" title="([^"]*)"', (folder / page).read_text())
    ]


def rows_of(run, **conditions):
    tables = selected_tables(RunDirectory.open(run), RowFilter(**conditions))
    return [row for table in tables for row in table.to_pylist()]


def test_every_image_has_one_tile_in_the_order_of_the_archive(run, gallery):
    assert names_in(gallery) == [row["uri"] for row in rows_of(run)]
    assert sorted(path.name for path in gallery.iterdir()) == [
        "gallery.json",
        "index.html",
        "page-00002.html",
        "page-00003.html",
    ]
    pictures = [
        path.read_text().count("data:image/jpeg") for path in sorted(gallery.glob("*.html"))
    ]
    assert pictures == [4, 4, 1]


def test_pages_lead_to_their_neighbours_and_nowhere_else(gallery):
    pages = {path.name: path.read_text() for path in gallery.glob("*.html")}
    for name, text in pages.items():
        links = re.findall(r'href="([^"]+)"', text)
        assert {link for link in links if link.endswith(".html")} == pages.keys() - {name}
        assert text.count("has no measured error rates") == 1
        assert "default-src 'none'" in text
        assert not re.search(r"https?://|url\(|@import", text)
        assert text.count("<script") == 1
        files = [link for link in links if not link.endswith(".html") and link != "data:,"]
        assert len(files) == text.count('class="tile"')
        assert all(link.startswith("file:///") for link in files)


def test_known_and_predicted_stand_beside_each_other(run, gallery):
    words = read((gallery / "index.html").read_text()).text
    row = rows_of(run)[1]
    assert row["input"] == {"label": "fake", "prompt": PROMPTS[1], "generator": "sdxl"}
    assert "Generator, known" in words
    assert "Stable Diffusion XL 1.0 (sdxl)" in words
    assert "a harbour at sunrise, <b>golden</b> light" in words
    assert "<b>golden" not in (gallery / "index.html").read_text()
    said = {one.term: one.said for one in tile_texts(row)}
    assert said["Words, known"] == PROMPTS[1]
    assert said["Words, predicted"] == row["predicted_prompt"]


def test_what_is_bad_or_gone_since_is_a_tile_that_says_so(gallery, tmp_path):
    last = read((gallery / "page-00003.html").read_text()).text
    assert "the file ends before the image does" in last
    assert last.count("No picture") == 2
    listed = write_archive(tmp_path / "archive", 3)
    files = sorted((tmp_path / "archive").glob("photo-*.jpg"))
    url = score_profiled(
        profiled_card(tmp_path, [path.read_bytes() for path in files]), listed, tmp_path / "run"
    )
    files[0].unlink()
    files[1].write_bytes(files[2].read_bytes())
    make_gallery(url, str(tmp_path / "out"), quiet=True)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert page.count("No picture") == 4


def test_one_that_was_interrupted_is_ours_from_its_first_page_on_and_a_shorter_one_leaves_none_behind(
    run, gallery, tmp_path, capsys
):
    note, first = gallery / "gallery.json", gallery / "index.html"
    assert note.stat().st_mtime_ns <= first.stat().st_mtime_ns
    for path in (note, first):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    make_gallery(run, str(tmp_path), per_page=PER_PAGE, quiet=True)
    assert all(
        (tmp_path / path.name).read_bytes() == path.read_bytes() for path in gallery.glob("*.html")
    )
    assert main(["runs", "gallery", run, "--out", str(tmp_path), "--verdict", "fake"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{tmp_path}/index.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery.json", "index.html"]


def test_filters_are_those_of_results(run, tmp_path):
    rows = rows_of(run)
    flagged = [row for row in rows if row["verdict"] == "fake"]
    family = flagged[0]["generator_family"]
    make_gallery(
        run,
        str(tmp_path / "family"),
        RowFilter(verdict="fake", generator=family.upper()),
        per_page=2,
        quiet=True,
    )
    assert names_in(tmp_path / "family") == [
        row["uri"] for row in flagged if row["generator_family"] == family
    ]
    make_gallery(run, str(tmp_path / "most"), most=3, per_page=2, quiet=True)
    best = sorted([row for row in rows if row["score"] is not None], key=lambda row: -row["score"])[
        :3
    ]
    assert set(names_in(tmp_path / "most")) == {row["uri"] for row in best}


def test_what_is_refused(run, plain_run, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="there is no folder"):
        make_gallery(str(tmp_path / "none"), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="named no generators"):
        make_gallery(plain_run, str(tmp_path / "out"), RowFilter(generator="sdxl"))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_gallery(run, str(tmp_path), quiet=True)
