"""What a profile says of a run's rows: counted on columns, and rows found by a generator's name in
any spelling.
"""

import pyarrow as pa

from ray_app.runs import row_schema, summarise
from ray_app.runs.selection import filter_by_generator

ROWS = [
    ("fake", "sdxl", "sdxl_1.0", 5.0, 3.0, "a harbour"),
    ("fake", "sdxl_1.0/mine", "sdxl_1.0", 4.0, 9.0, None),
    ("fake", None, None, -1.0, 4.0, "a pier"),
    ("fake", None, None, None, 5.0, "a wall"),
    ("real", "midjourney-6", "midjourney", 6.0, -3.0, None),
    ("abstain", "sdxl", "sdxl_1.0", 6.0, 0.0, None),
    (None, None, None, None, None, None),
]


def table(rows=ROWS):
    schema = row_schema(["one"], identified=True, described=True)
    told = [
        {
            "image_id": number, "uri": f"{number}.jpg", "status": "ok" if verdict else "corrupt_image", "verdict": verdict,
            "predicted_generator": name, "generator_family": family, "generator_confidence": sure, "score": score,
            "generator_ranking": ["sdxl"] if sure is not None else None, "predicted_prompt": words,
        }
        for number, (verdict, name, family, sure, score, words) in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(told, schema=schema)


def test_only_flagged_images_are_counted_by_generator():
    told = summarise([table(ROWS[:3]), table(ROWS[3:])], ["one"]).to_dict()["profile"]
    named = [(one["family"], one["generator"], one["flagged"]) for one in told["generators"]]
    assert named == [("sdxl_1.0", "sdxl", 1), ("sdxl_1.0", "sdxl_1.0/mine", 1)]
    assert [told[key] for key in ("flagged", "unlike", "silent", "described")] == [4, 1, 1, 3]
    assert [one["score"] for one in told["told"]] == [9.0, 5.0, 4.0, 3.0]


def test_rows_are_found_by_generator_or_family():
    for wanted, found in (
        *((name, [0, 5]) for name in ("sdxl", "SDXL", "stable diffusion XL")),
        ("sdxl_1.0", [0, 1, 5]),
        ("sdxl_1.0/mine", [1]),
        ("unknown", [2]),
    ):
        assert filter_by_generator(table(), wanted)["image_id"].to_pylist() == found, wanted
