"""A picture that no camera took and no generator made (`chart`)."""

from PIL import Image, ImageDraw


def chart(width: int = 900, height: int = 600) -> Image.Image:
    """White, with filled shapes and lines of writing, as charts and screenshots have."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for number in range(12):
        draw.rectangle(
            [60 * number + 40, height - 40 * number - 60, 60 * number + 80, height - 40],
            fill=(30, 60 + 12 * number, 160),
        )
    for row in range(40, height // 2, 48):
        for left in range(20, width, 24):
            draw.rectangle([left, row, left + 11, row + 16], fill="black")
    return image
