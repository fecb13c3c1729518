"""Write archives of many small files."""

import shutil

from benchmarks.photographs import write_photographs
from ray_app.storage import Store
from tests.make.images import encoded, photo


def write_many(folder, images):
    """Write about `images` files: 60 photographs, each under several names."""
    write_photographs(folder, 60, size=(640, 480))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        for copy in range(1, images // 60):
            shutil.copy(path, path.with_stem(f"{path.stem}-{copy}"))
    return folder


def fill_bucket(bucket, count):
    """Write `count` different small JPEG files below `photos` of a bucket."""
    base, store = photo(256, 192), Store.open(f"{bucket}/photos")
    for index in range(count):
        image = base.rotate(0, translate=(index % 61, index // 61 % 53))
        image.putpixel((index % 256, index // 256), (index % 256, 0, 0))
        data = encoded(image, "JPEG", quality=80 + index % 15)
        store.write(f"{index % 7}/{index:05d}.jpg", data)


def write_photo(path, seed, size=(320, 240)):
    """Write a JPEG file that depends on `seed` alone."""
    path.write_bytes(encoded(photo(*size, seed), "JPEG"))
