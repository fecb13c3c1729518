"""Lists of urls in every form: ids, labels, generators and words, and what is refused before
anything is asked.
"""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.datajobs.download import CollectConfig
from ray_app.datajobs.download.url_table import read_url_table
from ray_app.errors import ConfigError

RECORD = {
    "url": "https://host.test/x.png", "Prompt": "oil painting of a lighthouse in fog, <lora:foo:0.6>", "Negative prompt": "blurry",
    "Sampler": "Euler a", "Seed": "42", "CFG scale": "7", "Model hash": "a1b2c3d4e5", "Model": "someMix_v2", "Size": "512x768",
    "Steps": "28", "Clip skip": "2", "ENSD": "", "noise": "", "Source": "site", "others": "",
}  # fmt: skip


def read(path, **settings):
    return read_url_table(CollectConfig(meta=str(path), out="unused", **settings))


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_personalised_diffusions_name_their_own_models(tmp_path):
    records = {
        "0012345": RECORD,
        "1.2": {"url": "https://host.test/y.png", "Model hash": "ff00"},
        "3": {"url": "https://host.test/z"},
    }
    rows = read(written(tmp_path / "pd.json", records)).rows.to_pylist()
    assert rows[0] == {
        "id": "0012345", "url": "https://host.test/x.png", "label": "fake", "generator": "someMix_v2",
        "prompt": RECORD["Prompt"],
        "negative_prompt": "blurry", "sampler": "Euler a", "seed": "42", "cfg_scale": "7", "model_hash": "a1b2c3d4e5", 
        "model": "someMix_v2",
        "size": "512x768", "steps": "28", "clip_skip": "2", "ensd": None, "noise": None, "meta_source": "site", "others": None,
    }  # fmt: skip
    assert [row["generator"] for row in rows] == ["someMix_v2", "ff00", "sdft"]
    assert [row["id"] for row in rows] == ["0012345", "1.2", "3"]


@pytest.mark.parametrize(
    ("name", "generator"), [("dalle.json", "dalle-2"), ("mj.json", "midjourney")]
)
def test_other_families_are_named_by_their_files(tmp_path, name, generator):
    record = {"url": "https://host.test/x", "Prompt": "a cat --ar 3:2"}
    [row] = read(written(tmp_path / name, {"7": record})).rows.to_pylist()
    expected = {"label": "fake", "generator": generator, "prompt": record["Prompt"]}
    assert row == {"id": "7", "url": record["url"]} | expected


def test_csv_keeps_texts_and_columns_called_as_ours(tmp_path):
    text = 'image_id,URL,Label,seed,"Prompt"\n007,https://a.test/x,0,1e5,"a, ""b""\nc"\n8,https://a.test/y,fake,NA,\n'
    rows = read(written(tmp_path / "list.csv", text), generator="sd").rows
    assert rows.to_pydict() == {
        "id": ["007", "8"],
        "url": ["https://a.test/x", "https://a.test/y"],
        "label": ["real", "fake"],
        "generator": ["real", "sd"],
        "seed": ["1e5", "NA"],
        "prompt": ['a, "b"\nc', None],
    }
    named = written(tmp_path / "list.csv", "id,name,url\n7,a,https://a.test/x\n")
    [row] = read(named, id="name").rows.to_pylist()
    assert (row["id"], row["meta_id"]) == ("a", "7")


def test_parquet_with_numbers_and_other_column_names_is_read(tmp_path):
    urls = ["https://a.test/x", "https://a.test/y"]
    columns = {"name": [1, 2], "link": urls, "uri": ["u", "v"]}
    columns |= {"size": [[1, 2], [3, 4]], "thumb": [b"1", b"2"]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    row = read(tmp_path / "list.parquet", id="name", url="link").rows.to_pylist()[1]
    expected = {"label": "fake", "generator": None, "meta_uri": "v", "size": "[3, 4]"}
    assert row == {"id": "2", "url": urls[1]} | expected


def test_urls_without_ids_are_named_by_their_hash(tmp_path):
    rows = [
        {"url": "https://a.test/x", "prompt": "one\u2028two\x85three"},
        {"url": "https://a.test/x"},
        {"url": "https://a.test/y"},
    ]
    (tmp_path / "list.jsonl").write_bytes(
        "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    )
    listed = read(tmp_path / "list.jsonl")
    assert listed.rows["prompt"].to_pylist() == ["one\u2028two\x85three", None]
    assert [len(name) for name in listed.rows["id"].to_pylist()] == [16, 16]
    assert listed.repeated == 1
    assert len(read(tmp_path / "list.jsonl", limit=1).rows) == 1


def test_repeated_id_counts_once_and_may_not_have_two_urls(tmp_path):
    rows = "id,url,generator\n1,https://a.test/x,flux\n1,https://a.test/x,flux\n2,https://b.test/x,\n3,,\n"
    listed = read(written(tmp_path / "list.csv", rows), generator="sd")
    assert listed.rows["generator"].to_pylist() == ["flux", "sd"]
    assert (len(listed.rows), listed.repeated, listed.without_url) == (2, 1, 1)
    with pytest.raises(
        ConfigError, match=r"two URLs have the id '1': https://a\.test/x and https://c\.test/x"
    ):
        read(written(tmp_path / "other.csv", rows + "1,https://c.test/x,\n"))


def test_list_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "list.csv").write_text(
        "URL;Label;Generator\r\nhttps://a.test/x;1.0;Müller\r\n", encoding="utf-16"
    )
    [row] = read(tmp_path / "list.csv").rows.to_pylist()
    assert (row["url"], row["label"], row["generator"]) == ("https://a.test/x", "fake", "Müller")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.txt", "https://a.test", "not a list of URLs"),
        ("list.csv", "id,url\n1,\n", "no row has a URL"),
        ("list.json", '{"1": 2}', "must be an object"),
        ("list.csv", "id,url,label\n1,https://a.test/x,maybe\n", "'maybe' is not a label"),
        ("mj.json", '{"7": {"url": "http://a"}, "7": {"url": "http://b"}}', "duplicate id '7'"),
        ("sd.json", {"abc.png": {"p": "a cat", "se": 1}}, "no urls(?s:.*)DiffusionDB"),
    ],
)
def test_list_that_cannot_be_read_is_refused(tmp_path, name, content, words):
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path / name, content))
    assert re.search(words, f"{caught.value.message}\n{caught.value.hint}")
    assert name in caught.value.message


def test_missing_file_or_column_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="no column 'href'") as caught:
        read(written(tmp_path / "list.csv", "id,url\n1,https://a.test/x\n"), url="href")
    assert "id, url" in caught.value.hint
