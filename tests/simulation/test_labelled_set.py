from PIL import Image

from tests.simulation.archive import SPLITS, SimulatedSet, write_pair

FILE_PX = {"train": 72, "test": 80}
PLAN = SimulatedSet(
    pairs={}, histories={"train": 2}, picture_px=dict.fromkeys(FILE_PX, 96), file_px=FILE_PX, seed=5
)


def facts_of(path):
    """All that a file shows in addition to its pixels."""
    image = Image.open(path)
    tables = getattr(image, "quantization", None), getattr(image, "layer", None)
    return image.format, image.size, image.mode, tables, sorted(image.info)


def test_twins_differ_in_pixels_alone_and_keep_to_their_split(tmp_path):
    for split, side in FILE_PX.items():
        (tmp_path / split).mkdir()
        for number in range(4):
            rows = write_pair(tmp_path, PLAN, (split, number))
            assert len(rows) == 2 * PLAN.histories.get(split, 1)
            for real, fake in zip(rows[::2], rows[1::2], strict=True):
                assert [real[1], fake[1]] == ["real", "fake"]
                assert real[3:] == fake[3:] == (split, f"{split}-{number:06d}", real[5])
                assert real[2].removeprefix("real:") in SPLITS[split].cameras
                assert fake[2] in SPLITS[split].decoders
                assert real[5] in SPLITS[split].scenes
                assert facts_of(tmp_path / real[0]) == facts_of(tmp_path / fake[0])
                assert facts_of(tmp_path / real[0])[1:3] == ((side, side), "RGB")
                assert (tmp_path / real[0]).read_bytes() != (tmp_path / fake[0]).read_bytes()
