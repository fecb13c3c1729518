"""One picture that shows what a detector's score rests on and whether the deletion test confirms it: `explanation_figure`."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ray_app.inference.occlusion import Explanation, Floats, PixelBox, hatched, shade

_PANEL, _MARGIN, _CHART = 580, 30, 150  # pixels
_SMALL_PART = 0.6  # of a side: a detector that sees less has its part enlarged
_INK, _PALE, _LINE, _GOOD, _BAD = (30, 30, 30), (110, 110, 110), (205, 205, 205), (24, 110, 60), (176, 84, 0)


class _Sheet:
    """A white page to draw on. Pillow's own font has no minus sign, dash or arrow: texts are in ASCII."""

    def __init__(self, width: int, height: int) -> None:
        self.page = Image.new("RGB", (width, height), "white")
        self.draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.page)

    def text(self, x: float, y: float, words: str, size: int = 16, colour: tuple[int, int, int] = _INK, anchor: str = "la") -> None:
        """One line of text."""
        self.draw.text((x, y), words, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def explanation_figure(found: Explanation, image: Image.Image, title: str) -> Image.Image:
    """Image and map side by side, the scale in log-odds, and the deletion test as curves and in words."""
    whole, part, is_part = _whole(found, image), *_part(found, image)
    right, top = 2 * _MARGIN + _PANEL, 118
    under = top + max(whole.height, part.height)
    sheet = _Sheet(right + _PANEL + _MARGIN, under + _CHART + 164)
    sheet.text(_MARGIN, 22, f"{found.detector}: score {found.score:+.2f} (log-odds of fake)", 26)
    sheet.text(_MARGIN, 56, title if len(title) <= 120 else f"...{title[-117:]}", 15, _PALE)
    sheet.text(_MARGIN, 80, _worth(found), 19, _GOOD if found.faithful else _BAD)
    sheet.page.paste(whole, (_MARGIN, top))
    sheet.page.paste(part, (right, top))
    sheet.text(_MARGIN, top + whole.height + 6, "the image", 15, _PALE)
    shown = "no map: what single regions do is negligible" if found.negligible else "what the score rests on"
    sheet.text(right, top + part.height + 6, shown + (" (enlarged)" if is_part else ""), 15, _PALE)
    _draw_deletion(sheet, found, _MARGIN, under + 44)
    if found.negligible:
        _draw_key(sheet, found, right, under + 44)
    else:
        _draw_scale(sheet, found, right, under + 44)
        _draw_key(sheet, found, right, under + 152)
    return sheet.page


def _worth(found: Explanation) -> str:
    """What the map is worth, in a line."""
    if found.negligible:
        return f"NOTHING TO SHOW: {found.negligible_words}."
    if not found.faithful:
        return "NOT RELIABLE: the map fails its deletion test."
    return f"The map passes its deletion test; the strongest region moves the score by {-found.strongest[0]:+.2f}."


def _whole(found: Explanation, image: Image.Image) -> Image.Image:
    fitted = _fitted(image)
    return Image.fromarray(hatched(np.asarray(fitted), ~found.heat(*fitted.size)[1]))


def _part(found: Explanation, image: Image.Image) -> tuple[Image.Image, bool]:
    """The map over the image; where the detector sees a small part of it, over that part and a little of what is around it."""
    seen = found.view.image
    if max(seen.right - seen.left, seen.bottom - seen.top) > _SMALL_PART:
        return found.overlay(_fitted(image)), False
    wide, high = (seen.right - seen.left) * image.width * 0.08, (seen.bottom - seen.top) * image.height * 0.08
    left, right = max(int(seen.left * image.width - wide), 0), min(int(seen.right * image.width + wide), image.width)
    top, bottom = max(int(seen.top * image.height - high), 0), min(int(seen.bottom * image.height + high), image.height)
    box = PixelBox(left / image.width, top / image.height, right / image.width, bottom / image.height)
    return found.cropped(box).overlay(_fitted(image.crop((left, top, right, bottom)))), True


def _fitted(image: Image.Image) -> Image.Image:
    ratio = _PANEL / max(image.size)
    return image.resize((max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)), Image.Resampling.LANCZOS)


def _draw_scale(sheet: _Sheet, found: Explanation, x: int, y: int) -> None:
    strength = np.tile(np.linspace(-1, 1, _PANEL, dtype=np.float32), (22, 1))
    sheet.page.paste(Image.fromarray(shade(np.full(strength.shape, 150, np.uint8), strength)), (x, y + 24))
    sheet.text(x, y, "speaks for real", colour=(20, 60, 200))
    sheet.text(x + _PANEL, y, "speaks for fake", colour=(200, 20, 20), anchor="ra")
    for place, anchor, value in ((0, "la", -1.0), (0.5, "ma", 0.0), (1, "ra", 1.0)):
        sheet.text(x + place * _PANEL, y + 50, f"{value * found.full_colour:+.2f}" if value else "0", anchor=anchor)
    sheet.text(x + _PANEL / 2, y + 72, "log-odds of fake that the score loses when the region is blurred", 15, _PALE, "ma")


def _draw_key(sheet: _Sheet, found: Explanation, x: int, y: int) -> None:
    """What hatched parts mean, where there are any."""
    if tuple(found.view.image) != (0, 0, 1, 1):
        key = np.full((22, 60, 3), 200, np.uint8)
        sheet.page.paste(Image.fromarray(hatched(key, np.ones(key.shape[:2], bool))), (x, y))
        sheet.text(x + 70, y + 2, "not seen by this detector")


def _draw_deletion(sheet: _Sheet, found: Explanation, x: int, y: int) -> None:
    """The score while regions are deleted: by the map as a line, the random orders as a band with their mean."""
    chance = found.random_deletions
    every = np.append(np.vstack([found.deletion, chance]), 0)
    left, wide, lowest, span = x + 60, _PANEL - 60, float(every.min()), max(float(np.ptp(every)), 0.1)

    def points(curve: Floats) -> list[tuple[float, float]]:
        along = np.linspace(left, left + wide, len(curve))
        return [(float(at), y + _CHART * (1 - (float(value) - lowest) / span)) for at, value in zip(along, curve, strict=True)]

    sheet.draw.polygon(points(chance.min(axis=0)) + points(chance.max(axis=0))[::-1], fill=(228, 228, 228))
    sheet.draw.rectangle((left, y, left + wide, y + _CHART), outline=_LINE)
    sheet.draw.line(points(np.zeros(2, np.float32)), fill=_LINE)
    sheet.text(left - 8, y + _CHART / 2, "score", 14, _PALE, "rm")
    sheet.draw.line(points(chance.mean(axis=0)), fill=_PALE, width=2)
    colour = _GOOD if found.faithful else _BAD
    sheet.draw.line(points(found.deletion), fill=colour, width=3)
    for height, value in ((_CHART, lowest), (0, lowest + span)):
        sheet.text(left - 8, y + height, f"{value:+.1f}", 14, _PALE, "rm")
    for share, words, anchor in ((0, "0 %", "la"), (0.5, "regions deleted", "ma"), (1, "100 %", "ra")):
        sheet.text(left + share * wide, y + _CHART + 4, words, 14, _PALE, anchor)
    areas = found.random_areas
    orders = f"{areas.mean():+.2f} ({areas.min():+.2f} to {areas.max():+.2f}) in {len(areas)} random orders (grey)."
    sheet.text(left, y + _CHART + 30, f"Mean score: {found.area:+.2f} in the map's order (line);", colour=colour)
    sheet.text(left, y + _CHART + 54, orders, colour=_PALE)
    sheet.text(left, y + _CHART + 78, f"With every region blurred the score is {found.deletion[-1]:+.2f}.", colour=_PALE)
