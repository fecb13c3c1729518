"""`resized_rows_first`: Pillow's resize with its two passes in one order, whichever Pillow is installed."""

from PIL import Image


def resized_rows_first(
    image: Image.Image, size: tuple[int, int], filter: Image.Resampling, part: tuple[float, float] | None = None
) -> Image.Image:
    """Resize an image, or its upper left `part`, (width, height) in fractions of pixels, to `size`, (width, height).

    Every Pillow before 13 works along the rows first, then along the columns, and rounds in between; 13 takes the order that is less work,
    which for tall pictures whose aspect changes is the other one. In two calls the order is that of the versions with which the detectors'
    authors measured. The picture in between is `size[0]` wide and as high as the image.
    """
    width, height = part or image.size
    across = image.resize((size[0], image.height), filter, box=(0, 0, width, image.height))
    return across.resize(size, filter, box=(0, 0, size[0], height))
