"""Pictures of shapes, with the words that describe them: what a predictor of prompts can be tried on without a network or a download.

A picture is one shape of a given colour on a plain ground; its words say what stands where. Seeded; knows no files but its own.
"""

import csv
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 205, 45),
    "purple": (140, 50, 170),
    "orange": (240, 135, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"upper left": (0, 0), "upper right": (1, 0), "lower left": (0, 1), "lower right": (1, 1)}
GROUNDS = {"white": (245, 245, 245), "grey": (150, 150, 150), "black": (25, 25, 25)}
_SUPERSAMPLED = 2


class ShapePicture(NamedTuple):
    """What a picture shows."""

    shape: str
    colour: str
    place: str
    ground: str

    @property
    def prompt(self) -> str:
        """The words of it."""
        return f"a {self.colour} {self.shape}, {self.place}, {self.ground} ground"

    @property
    def combination(self) -> tuple[str, str, str]:
        """Shape, colour and place: what a split holds out as a whole."""
        return self.shape, self.colour, self.place


def draw_shapes(told: ShapePicture, seed: int, side: int = 64) -> Image.Image:
    """The picture of it, `side` pixels square; the seed moves, sizes and shades a little, and adds noise."""
    rng = np.random.default_rng([seed, 11])
    large = side * _SUPERSAMPLED
    picture = Image.new("RGB", (large, large), _shaded(GROUNDS[told.ground], rng))
    radius = large * rng.uniform(0.18, 0.23)
    middle = [large * (0.27 + 0.46 * at) + large * rng.uniform(-0.03, 0.03) for at in PLACES[told.place]]
    _draw(ImageDraw.Draw(picture), told.shape, middle[0], middle[1], radius, _shaded(COLOURS[told.colour], rng))
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BOX), np.float32) + rng.normal(0, 4, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def divided_shapes(count: int, held_out: float, seed: int) -> tuple[list[ShapePicture], list[ShapePicture]]:
    """About `count` pictures' contents for training, and those of combinations that no training picture has: this share of all.

    Every shape, colour and place is seen in training, in other combinations.
    """
    rng = np.random.default_rng([seed, 12])
    every = [ShapePicture(*parts) for parts in product(SHAPES, COLOURS, PLACES, GROUNDS)]
    combinations = sorted({one.combination for one in every})
    chosen = {combinations[place] for place in rng.permutation(len(combinations))[: round(held_out * len(combinations))]}
    train = [one for one in every if one.combination not in chosen]
    held = [one for one in every if one.combination in chosen]
    drawn = [train[place] for place in rng.integers(len(train), size=count)]
    return drawn, held


def write_shapes(folder: Path, train: int) -> Path:
    """PNG files of such pictures, a fifth of all combinations held out for validation; returns their list `labels.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "generator", "split", "group", "prompt"))
        parts = zip(("train", "validation"), divided_shapes(train, 0.2, seed=0), strict=True)
        for number, (split, told) in enumerate((split, told) for split, several in parts for told in several):
            name = f"{split}-{number:04d}.png"
            draw_shapes(told, number).save(folder / name)
            rows.writerow((name, "fake", "shapes", split, " ".join(told.combination), told.prompt))
    return folder / "labels.csv"


def _shaded(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(value + rng.integers(-12, 13), 0, 255)) for value in colour)
    return red, green, blue


def _draw(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        third = radius * 0.4
        pen.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
        pen.rectangle((x - third, y - radius, x + third, y + radius), fill=colour)
