"""Lists of repositories: both headers, and errors that name the line."""

import pytest

from ray_app.datajobs.repositories.image_rules import read_refused, read_rules
from ray_app.errors import ConfigError

OLDER = (
    "repo,commit,path_rule,label,source,generator_or_camera,n,MB,formats,"
    "minside_p10/50/90,jpegQ_p10/50/90,exif_models,licence_file_head,note"
)


def test_a_row_and_what_it_leaves_open(lists):
    row = {"path_rule": "^a/ NOT b|c", "label": "fake", "source": "made", "licence": "MIT", "covers_pictures": "yes", "split": "test"}
    header = "repo,commit,path_rule,label,source,licence,covers_pictures,split"
    (rule,) = read_rules(lists.rules(row, header=header))
    assert (rule.generator, rule.family, rule.graphics, rule.cap, rule.split) == ("unknown", "owner", False, None, "test")
    assert [path for path in ("a/x", "A/x", "a/B", "x/a/x") if rule.chooses(path)] == ["a/x", "A/x"]


def test_the_older_header(lists):
    rows = [
        {"path_rule": "a", "generator_or_camera": "a phone", "licence_file_head": "none in repo root", "n": 7, "note": "capped at 120"},
        {"path_rule": "b", "label": "grid2x2", "source": "sheets", "licence_file_head": "MIT License\n Copyright"},
    ]
    first, second = read_rules(lists.rules(*rows, header=OLDER))
    assert (first.cap, first.expected, first.licence, first.generator) == (120, 7, "none in repo root", "real:photos")
    assert (second.label, second.is_sheet, second.licence, second.cap) == ("fake", True, "MIT License Copyright", None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path_rule": "("}, "line 2: .* no regular expression"),
        ({"path_rule": "a NOT ("}, "line 2: .* no regular expression"),
        ({"path_rule": "a", "label": "photo"}, "no label"),
        ({"path_rule": "a", "commit": "main"}, "commit 'main'"),
        ({"path_rule": "a", "repo": "../.."}, "repo"),
        ({"path_rule": "a", "repo": "--upload-pack=x/y"}, "repo"),
        ({"path_rule": "a", "source": "../x"}, "source"),
        ({"path_rule": "a", "cap": "many"}, "cap 'many'"),
        ({"path_rule": "a", "graphics": "partly"}, "graphics 'partly'"),
    ],
)
def test_what_is_no_rule(lists, row, words):
    with pytest.raises(ConfigError, match=words):
        read_rules(lists.rules(row))


def test_what_is_no_list(lists, tmp_path):
    with pytest.raises(ConfigError, match="no column path_rule"):
        read_rules(lists.rules(header="repo,commit,label,source"))
    with pytest.raises(ConfigError, match="no row"):
        read_rules(lists.rules())
    with pytest.raises(ConfigError, match="two labels, families or splits"):
        read_rules(lists.rules({"path_rule": "a"}, {"path_rule": "b", "label": "fake"}))
    with pytest.raises(ConfigError, match=r"none\.csv"):
        read_rules(str(tmp_path / "none.csv"))


def test_the_refused_ones(lists, tmp_path):
    refused, digest = read_refused(lists.refused())
    assert len(refused) == 2
    assert digest != read_refused(None)[1]
    (tmp_path / "words").write_text("not a hash\n")
    with pytest.raises(ConfigError, match="no SHA-256"):
        read_refused(str(tmp_path / "words"))
