import pytest

from ray_app.archives import Archive
from ray_app.datasets.layouts import make_layout
from tests.datasets.layouts.telling import refused, told
from tests.make.published import picture, write_parquet


def opensdi(path, keys, labels, masks):
    images = [picture(number) for number in range(len(keys))]
    columns = {"key": keys, "image": images, "mask": masks, "label": labels}
    return write_parquet(path, columns, images=("image", "mask"), labels=["real", "fake"])


def test_opensdi(tmp_path):
    mask, path = picture(9, "L"), tmp_path / "OpenSDI_test/data/sd2-00000-of-00007.parquet"
    keys = ["partial/sd2/fake/000000007.jpg", "entire/sd2/fake/000000008.jpg"]
    keys.append("partial/sd2/real/000000007.jpg")
    shard = opensdi(path, keys, [1, 1, 0], [mask, None, mask])
    found = list(told(make_layout("opensdi", {}), shard).values())
    assert [
        (one.label, one.generator, one.mask_uri, one.split, one.group, subset)
        for one, subset in found
    ] == [
        ("fake", "sd2", f"{shard}#row=0&column=mask", "test", "key:000000007", "test/sd2"),
        ("fake", "sd2", None, "test", "key:000000008", "test/sd2"),
        ("real", "real", None, "test", "key:000000007", "test/sd2"),
    ]
    first = next(iter(Archive([str(shard)])))
    assert make_layout("opensdi", {"part": "plus"}).labels(first).split == "train"


@pytest.mark.parametrize(
    ("key", "label", "mask", "message"),
    [
        ("partial/sd2/fake/1.jpg", 0, True, "its label is real"),
        ("entire/sd2/real/1.jpg", 1, False, "its label is fake"),
        ("partial/sd2/fake/1.jpg", 1, False, "but the row has no mask"),
        ("sd2/fake/1.jpg", 1, True, "is not partial|entire/GENERATOR/real|fake/FILE"),
    ],
)
def test_opensdi_refuses_contradictions(tmp_path, key, label, mask, message):
    shard = opensdi(
        tmp_path / "sd2-00000-of-00001.parquet", [key], [label], [picture(9, "L") if mask else None]
    )
    [item] = Archive([str(shard)])
    assert message in refused(make_layout("opensdi", {}), item)
