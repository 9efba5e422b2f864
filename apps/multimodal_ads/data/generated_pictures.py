"""Pictures of the generated set: a product with a price tag, or a plain scene, drawn with Pillow."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["draw_picture"]

Colour = tuple[int, int, int]

_SIZES = ((96, 96), (128, 96), (96, 128), (160, 120), (120, 160))  # width, height
_SCALE = 2  # drawn larger and reduced, for smooth edges
_TAGS: tuple[Colour, ...] = ((225, 30, 40), (240, 90, 20), (250, 205, 20), (215, 20, 110))
_STILL_LIFES = 0.3  # scenes that show a product, too, but no price tag


def draw_picture(rng: np.random.Generator, *, priced: bool) -> Image.Image:
    """RGB, 96 to 160 pixels a side: a product with a price tag (`priced`), or a landscape or a still life."""
    width, height = _SIZES[int(rng.integers(len(_SIZES)))]
    image = _gradient(rng, (width * _SCALE, height * _SCALE), light=bool(rng.random() < 0.8))
    if priced or rng.random() < _STILL_LIFES:
        _draw_still_life(image, rng)
    else:
        _draw_landscape(image, rng)
    _draw_lines(image, rng)
    if priced:
        _draw_tag(image, rng)
    image = image.reduce(_SCALE)
    noise = rng.integers(-7, 8, size=(height, width, 3), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator, size: tuple[int, int], *, light: bool) -> Image.Image:
    low, high = (150, 245) if light else (40, 120)
    top, bottom = rng.integers(low, high, size=(2, 1, 1, 3)) + rng.integers(-10, 11, size=(2, 1, 1, 3))
    ramp = np.linspace(0, 1, size[1])[:, None, None]
    rows = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (size[1], size[0], 3))
    return Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, low: int = 30, high: int = 230) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(low, high, size=3))
    return red, green, blue


def _darker(colour: Colour, factor: float = 0.7) -> Colour:
    red, green, blue = (min(255, int(value * factor)) for value in colour)
    return red, green, blue


# ----------------------------------------------------------------------------------------------------------- contents


def _draw_still_life(image: Image.Image, rng: np.random.Generator) -> None:
    """A table with one product on it."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    table = height * rng.uniform(0.62, 0.8)
    draw.rectangle((0, table, width, height), fill=_colour(rng, 90, 220))
    side = min(width, height) * rng.uniform(0.42, 0.6)
    left = rng.uniform(0.1, 0.9) * (width - side)
    bottom = table + rng.uniform(0.3, 0.8) * (height - table)
    draw.ellipse((left, bottom - side * 0.08, left + side, bottom + side * 0.08), fill=(70, 70, 75))
    shapes = (_bottle, _box, _mug, _lamp, _shoe)
    shapes[int(rng.integers(len(shapes)))](draw, _colour(rng), (left, bottom - side, side))


def _scaled(points: Sequence[tuple[float, float]], place: tuple[float, float, float]) -> list[tuple[float, float]]:
    """From a unit square, y downwards, to the picture."""
    left, top, side = place
    return [(left + x * side, top + y * side) for x, y in points]


def _bottle(draw: ImageDraw.ImageDraw, colour: Colour, place: tuple[float, float, float]) -> None:
    outline = [(0.42, 0.05), (0.58, 0.05), (0.58, 0.28), (0.7, 0.42), (0.7, 1), (0.3, 1), (0.3, 0.42), (0.42, 0.28)]
    draw.polygon(_scaled(outline, place), fill=colour)
    draw.polygon(_scaled([(0.3, 0.55), (0.7, 0.55), (0.7, 0.8), (0.3, 0.8)], place), fill=(240, 238, 230))
    draw.polygon(_scaled([(0.42, 0), (0.58, 0), (0.58, 0.08), (0.42, 0.08)], place), fill=_darker(colour, 0.5))


def _box(draw: ImageDraw.ImageDraw, colour: Colour, place: tuple[float, float, float]) -> None:
    draw.polygon(_scaled([(0.1, 0.35), (0.65, 0.35), (0.65, 1), (0.1, 1)], place), fill=colour)
    draw.polygon(_scaled([(0.65, 0.35), (0.9, 0.2), (0.9, 0.85), (0.65, 1)], place), fill=_darker(colour))
    draw.polygon(_scaled([(0.1, 0.35), (0.35, 0.2), (0.9, 0.2), (0.65, 0.35)], place), fill=_darker(colour, 1.2))


def _mug(draw: ImageDraw.ImageDraw, colour: Colour, place: tuple[float, float, float]) -> None:
    ring = _scaled([(0.55, 0.45), (0.95, 0.85)], place)
    draw.ellipse((*ring[0], *ring[1]), outline=_darker(colour), width=max(2, int(place[2] * 0.08)))
    draw.polygon(_scaled([(0.15, 0.35), (0.75, 0.35), (0.7, 1), (0.2, 1)], place), fill=colour)
    rim = _scaled([(0.15, 0.28), (0.75, 0.42)], place)
    draw.ellipse((*rim[0], *rim[1]), fill=_darker(colour))


def _lamp(draw: ImageDraw.ImageDraw, colour: Colour, place: tuple[float, float, float]) -> None:
    draw.polygon(_scaled([(0.47, 0.4), (0.53, 0.4), (0.53, 0.95), (0.47, 0.95)], place), fill=(60, 60, 60))
    draw.polygon(_scaled([(0.35, 0.05), (0.65, 0.05), (0.85, 0.45), (0.15, 0.45)], place), fill=colour)
    draw.polygon(_scaled([(0.25, 0.94), (0.75, 0.94), (0.75, 1), (0.25, 1)], place), fill=(60, 60, 60))


def _shoe(draw: ImageDraw.ImageDraw, colour: Colour, place: tuple[float, float, float]) -> None:
    outline = [(0.05, 0.45), (0.35, 0.45), (0.55, 0.68), (0.92, 0.78), (0.97, 0.93), (0.05, 0.93)]
    draw.polygon(_scaled(outline, place), fill=colour)
    draw.polygon(_scaled([(0.05, 0.9), (0.98, 0.9), (0.98, 1), (0.05, 1)], place), fill=(245, 245, 240))


def _draw_landscape(image: Image.Image, rng: np.random.Generator) -> None:
    """Hills under a sky, with the sun, trees and houses."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    if rng.random() < 0.6:
        radius = min(width, height) * rng.uniform(0.06, 0.12)
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.3) * height
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 225, 110))
    green = bool(rng.random() < 0.7)
    for layer in range(int(rng.integers(1, 4))):
        level = height * (0.45 + 0.15 * layer) + rng.uniform(-0.05, 0.05) * height
        across = np.linspace(0, width, 25)
        waves = np.zeros(25)
        for k in (3, 7, 13):
            waves += rng.uniform(0.01, 0.06) * height * np.sin(across / width * k + rng.uniform(0, 6))
        base = _colour(rng, 60, 170)
        colour = (base[0] // 2, base[1], base[2] // 2) if green else base
        draw.polygon([(0, height), *zip(across, level + waves, strict=True), (width, height)], fill=colour)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.6, 0.9) * height
        (_draw_tree if rng.random() < 0.6 else _draw_house)(draw, rng, (x, y, height * rng.uniform(0.1, 0.25)))


def _draw_tree(draw: ImageDraw.ImageDraw, rng: np.random.Generator, place: tuple[float, float, float]) -> None:
    x, y, size = place
    draw.rectangle((x - size * 0.06, y - size * 0.4, x + size * 0.06, y), fill=(95, 65, 40))
    crown = (int(rng.integers(20, 90)), int(rng.integers(80, 150)), int(rng.integers(20, 80)))
    draw.ellipse((x - size * 0.35, y - size, x + size * 0.35, y - size * 0.3), fill=crown)


def _draw_house(draw: ImageDraw.ImageDraw, rng: np.random.Generator, place: tuple[float, float, float]) -> None:
    x, y, size = place
    draw.rectangle((x - size * 0.4, y - size * 0.5, x + size * 0.4, y), fill=_colour(rng, 140, 240))
    draw.polygon(
        [(x - size * 0.5, y - size * 0.5), (x, y - size), (x + size * 0.5, y - size * 0.5)], fill=(120, 60, 50)
    )
    draw.rectangle((x - size * 0.1, y - size * 0.3, x + size * 0.1, y), fill=(80, 55, 45))


def _draw_tag(image: Image.Image, rng: np.random.Generator) -> None:
    """A star with a number on it, in a corner."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    radius = min(width, height) * rng.uniform(0.17, 0.25)
    x = radius * 1.05 if rng.random() < 0.5 else width - radius * 1.05
    y = radius * 1.05 if rng.random() < 0.65 else height - radius * 1.05
    spikes, turn = int(rng.integers(9, 16)), rng.uniform(0, 6)
    inner = rng.uniform(0.7, 0.82)
    points = []
    for k in range(2 * spikes):
        reach, angle = radius * (1 if k % 2 else inner), turn + math.pi * k / spikes
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    colour = _TAGS[int(rng.integers(len(_TAGS)))]
    draw.polygon(points, fill=colour)
    ink = (255, 255, 255) if sum(colour) < 400 else (160, 20, 20)
    text = f"{int(rng.integers(1, 10))}{int(rng.integers(0, 10))}" + ("%" if rng.random() < 0.5 else "")
    draw.text((x, y), text, fill=ink, anchor="mm", font_size=radius * (0.75 if len(text) == 3 else 0.95))


def _draw_lines(image: Image.Image, rng: np.random.Generator) -> None:
    """Lines of small print, which all pictures may have."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    grey = 30 if rng.random() < 0.5 else 220
    thick = max(2, height // 60)
    left, top = rng.uniform(0.05, 0.4) * width, rng.uniform(0.84, 0.92) * height
    for line in range(int(rng.integers(0, 4))):
        right, y = left + rng.uniform(0.2, 0.5) * width, top + 2.2 * thick * line
        x = left
        while x < right:
            word = rng.uniform(0.03, 0.1) * width
            draw.rectangle((x, y, min(x + word, right), y + thick), fill=(grey, grey, grey))
            x += word + 0.015 * width
