"""A sheet of paper to draw on: words in real fonts, lines, boxes, tables, pictures; for the generated pages.

Fonts are those that come with matplotlib, and for Korean one that the system has.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.font_manager import FontPath
from PIL import Image, ImageDraw, ImageFont

from mlcore.report.plots.style import displayable

__all__ = ["LATIN", "Sheet", "korean_font", "number", "phrase"]

Box = tuple[float, float, float, float]  # left, top, right, bottom

LATIN = ("sans", "serif", "mono")
_FILES = {
    "sans": "DejaVuSans",
    "sans bold": "DejaVuSans-Bold",
    "serif": "DejaVuSerif",
    "serif bold": "DejaVuSerif-Bold",
    "mono": "DejaVuSansMono",
    "mono bold": "DejaVuSansMono-Bold",
    "hand": "DejaVuSerif-Italic",
}
_EDGE = 0.01  # paper beside a line of text
_ENGLISH_TEXT = (
    "the of and to in for on with is that by this be are from as at our your will we it was have not or all which has "
    "please account payment order department office page section report meeting project results method data figure "
    "customer market service company research number date amount total review plan system process council village "
    "season minister agreement budget quarter contract delivery insurance experiment temperature protein analysis "
    "increase manager colleague statement request response schedule deadline training approach proposal committee"
)
_KOREAN_TEXT = (
    "회의 보고서 결과 서비스 금액 합계 주문 고객 담당자 부서 날짜 번호 내용 확인 바랍니다 안내 드립니다 계약 일정 "
    "검토 자료 제출 신청서 연구 방법 분석 시장 계획 예산 분기 정부 발표 지역 주민 교육 관리 시스템 협력"
)
_ENGLISH, _KOREAN = _ENGLISH_TEXT.split(), _KOREAN_TEXT.split()


def korean_font() -> FontPath | None:
    """File of a font with Hangul, and which one of those in it; None: the system has none."""
    families = displayable(_KOREAN).fonts  # the base font alone where no font has them
    return font_manager.findfont(families[-1]) if len(families) > 1 else None


def phrase(rng: np.random.Generator, count: int, *, korean: bool = False) -> list[str]:
    """Words that mean nothing."""
    words = _KOREAN if korean else _ENGLISH
    return [words[k] for k in rng.integers(len(words), size=count)]


def number(rng: np.random.Generator, *, digits: int = 4) -> str:
    """An amount such as 1,204.50."""
    return f"{rng.integers(10 ** (digits - 1), 10**digits) / 100:,.2f}"


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name in _FILES:
        name = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{_FILES[name]}.ttf")
    face = name.face_index if isinstance(name, FontPath) else 0
    # The basic layout is the same wherever Pillow comes from, and quicker.
    return ImageFont.truetype(name, size, index=face, layout_engine=ImageFont.Layout.BASIC)


@cache
def _width(face: ImageFont.FreeTypeFont, word: str) -> float:
    return float(face.getlength(word))


class Sheet:
    """A grey page; lengths are shares of its height, so x goes from 0 to `aspect` and y from 0 to 1.

    Args:
        aspect: Width / height.
        height: Pixels.
        rng: Where all chance comes from.
        korean: A font with Hangul to set words in; None: words are English.
        paper: Grey of the ground.
    """

    def __init__(
        self, aspect: float, *, height: int, rng: np.random.Generator, korean: str | None = None, paper: int = 255
    ) -> None:
        self.aspect = aspect
        self.height = height
        self.rng = rng
        self.korean = korean
        self.ink = int(rng.integers(0, 70))
        self.image = Image.new("L", (round(aspect * height), height), paper)
        self._draw = ImageDraw.Draw(self.image)

    def between(self, low: float, high: float) -> float:
        """A number drawn from a range."""
        return float(self.rng.uniform(low, high))

    def often(self, probability: float) -> bool:
        """True in that share of cases."""
        return bool(self.rng.random() < probability)

    def words(self, count: int) -> list[str]:
        """Words in the page's language."""
        return phrase(self.rng, count, korean=self.korean is not None)

    def font(self, name: str, size: float) -> ImageFont.FreeTypeFont:
        """A font of a height (share of the page's); Korean pages have one font for all words."""
        return _font(self.korean or name, max(5, round(size * self.height)))

    def text(
        self,
        place: tuple[float, float],
        words: Sequence[str] | str,
        *,
        size: float = 0.018,
        font: str = "sans",
        anchor: str = "la",
        ink: int | None = None,
    ) -> float:
        """One line; of several words as many as fit on the page. Returns where it ends (x)."""
        face = self.font(font, size)
        room = {"l": self.aspect - place[0], "r": place[0], "m": 2 * min(place[0], self.aspect - place[0])}[anchor[0]]
        kept = [words] if isinstance(words, str) else list(words)
        while len(kept) > 1 and face.getlength(" ".join(kept)) > (room - _EDGE) * self.height:
            kept.pop()
        line = " ".join(kept)
        x, y = place[0] * self.height, place[1] * self.height
        self._draw.text((x, y), line, fill=self.ink if ink is None else ink, font=face, anchor=anchor)
        return place[0] + face.getlength(line) / self.height

    def paragraph(
        self, box: Box, *, size: float = 0.016, font: str = "serif", leading: float = 1.45, indent: float = 0.0
    ) -> float:
        """Words that fill a box line by line, the last one in part; returns the y below it."""
        left, top, right, bottom = box
        face = self.font(font, size)
        y, first = top, True
        while y + size <= bottom:
            start = left + (indent if first else 0.0)
            last = y + (1 + leading) * size > bottom
            room = (right - start) * self.height * (self.between(0.2, 0.9) if last else 1.0)
            self.text((start, y), self._line_of(face, room), size=size, font=font)
            y, first = y + leading * size, False
        return y

    def _line_of(self, face: ImageFont.FreeTypeFont, room: float) -> list[str]:
        """Words up to a width in pixels, one at least."""
        line: list[str] = []
        while True:
            for word in self.words(16):
                room -= _width(face, word)
                if line and room < 0:
                    return line
                line.append(word)
                room -= _width(face, " ")

    def line(self, start: tuple[float, float], end: tuple[float, float], *, width: float = 0.002) -> None:
        """A straight line."""
        points = [value * self.height for value in (*start, *end)]
        self._draw.line(points, fill=self.ink, width=max(1, round(width * self.height)))

    def curve(self, points: Sequence[tuple[float, float]], *, width: float = 0.004, ink: int | None = None) -> None:
        """A line through points."""
        scaled = [(x * self.height, y * self.height) for x, y in points]
        grey = self.ink if ink is None else ink
        self._draw.line(scaled, fill=grey, width=max(1, round(width * self.height)), joint="curve")

    def box(self, box: Box, *, fill: int | None = None, outline: bool = True, width: float = 0.002) -> None:
        """A rectangle."""
        left, top, right, bottom = (value * self.height for value in box)
        self._draw.rectangle(
            (left, top, max(left, right), max(top, bottom)),
            fill=fill,
            outline=self.ink if outline else None,
            width=max(1, round(width * self.height)),
        )

    def disc(self, centre: tuple[float, float], radius: float, *, fill: int | None = None) -> None:
        """A circle with an outline."""
        x, y, r = (value * self.height for value in (*centre, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=self.ink, width=max(1, self.height // 250))

    def table(self, box: Box, *, rows: int, widths: Sequence[float], ruled: str, size: float = 0.015) -> None:
        """Words in the first column and numbers in the others; `ruled` is "all", "rows", "head" or "none"."""
        left, top, right, bottom = box
        edges = left + (right - left) * np.concatenate([[0], np.cumsum(widths) / sum(widths)])
        step = (bottom - top) / rows
        if ruled != "none":
            self.box((left, top, right, top + step), fill=int(self.rng.integers(190, 245)), outline=ruled == "all")
        for row in range(rows):
            y = top + (row + 0.5) * step
            style = "sans bold" if row == 0 else "sans"
            self.text((left + 0.006, y), self.words(1 if row == 0 else 2), size=size, font=style, anchor="lm")
            for x in edges[2:]:
                value = self.words(1)[0] if row == 0 else number(self.rng, digits=int(self.rng.integers(3, 6)))
                self.text((float(x) - 0.006, y), value[:9], size=size, font=style, anchor="rm")
            if ruled in ("all", "rows") and row:
                self.line((left, top + row * step), (right, top + row * step), width=0.0012)
        if ruled == "all":
            self.box(box)
            for x in edges[1:-1]:
                self.line((float(x), top), (float(x), bottom), width=0.0012)

    def photo(self, box: Box) -> None:
        """A smooth patch of greys, like a photograph."""
        width, height = (max(2, round(side * self.height)) for side in (box[2] - box[0], box[3] - box[1]))
        coarse = self.rng.integers(20, 235, size=(4, 5)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        self.image.paste(picture, (round(box[0] * self.height), round(box[1] * self.height)))

    def signature(self, place: tuple[float, float], *, length: float) -> None:
        """A scrawl."""
        t = np.linspace(0, 1, 24)
        waves = np.zeros(24)
        for k in (9, 17, 29):
            waves += self.between(0.004, 0.016) * np.sin(t * k + self.between(0, 6))
        points = [(place[0] + length * float(a), place[1] + float(b)) for a, b in zip(t, waves, strict=True)]
        self.curve(points, width=0.003)

    def bars(self, box: Box) -> None:
        """A bar code."""
        x = box[0]
        while x < box[2]:
            width = self.between(0.002, 0.007)
            self.box((x, box[1], min(x + width, box[2]), box[3]), fill=self.ink, outline=False)
            x += width + self.between(0.003, 0.007)

    def plot(self, box: Box, *, kind: str) -> None:
        """A diagram with axes: "lines" or "bars"."""
        left, top, right, bottom = box
        self.line((left, top), (left, bottom))
        self.line((left, bottom), (right, bottom))
        count = int(self.rng.integers(4, 9))
        across = np.linspace(left, right, count + 2)[1:-1]
        for x in across:
            self.text((float(x), bottom + 0.008), str(int(self.rng.integers(1, 99))), size=0.014, anchor="ma")
        for curve in range(1 if kind == "bars" else int(self.rng.integers(1, 4))):
            tops = bottom - (bottom - top) * self.rng.uniform(0.15, 0.95, size=count)
            half = 0.3 * (right - left) / (count + 1)
            if kind == "bars":
                for x, y in zip(across, tops, strict=True):
                    self.box((float(x) - half, float(y), float(x) + half, bottom), fill=int(self.rng.integers(60, 200)))
            else:
                points = [(float(x), float(y)) for x, y in zip(across, tops, strict=True)]
                self.curve(points, ink=min(200, self.ink + 60 * curve))
