"""Pictures of a case: what was marked, what was predicted, and where the two differ.

Radiological convention: the viewer faces the patient's feet (axial) or face (coronal), so the patient's right is on the
left of the picture; sagittal pictures look to the left. Letters at the edges say so. All views of a case share one
scale in mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from mlcore.report.plots.style import displayable, picture
from quartet.apps.sam_med3d_ich.case_metrics import Mask
from quartet.apps.sam_med3d_ich.masks import dice_per_case
from quartet.apps.sam_med3d_ich.scene import (
    CONTOUR,
    FILL,
    MISSED,
    PLANES,
    RIGHT,
    WRONG,
    Plane,
    Scene,
    View,
    make_scene,
    rgb,
)

__all__ = ["best_median_worst", "plot_overlay"]

_GROUND, _INK = "#12171d", "#e6eaee"  # as viewers of CTs have it; it glares in no light
_PANELS = 8
_STEP_MM = 5.0  # between neighbouring axial slices
_ZOOM_MM = (30.0, 12.0)  # least side of the enlarged square, and margin around the bleed
_LONGEST_TITLE = 110
_ON_IMAGE: dict[str, Any] = {"color": "#e3e8ec", "path_effects": [withStroke(linewidth=2.5, foreground="#000000")]}

_Limits = tuple[float, float, float, float]
"""Left, right, bottom and top, mm; the top is the smaller number, as rows count down."""
_LETTERS: dict[Plane, tuple[str, str, str, str]] = {  # left, right, top, bottom of the picture
    "sagittal": ("A", "P", "S", "I"),
    "coronal": ("R", "L", "S", "I"),
    "axial": ("R", "L", "A", "P"),
}


def plot_overlay(
    volume: NDArray[Any],
    *,
    predicted: Mask,
    target: Mask | None,
    affine: NDArray[np.float64],
    title: str,
    path: Path,
    window: tuple[float, float] | None = None,
) -> Path:
    """Draw a case: four axial slices, one coronal and one sagittal through the bleed, and the bleed enlarged.

    Axial: the slice with the largest marked area, the slice with the largest error, and the neighbours of the first
    5 mm up and down. The last picture is bare. Without a marked bleed the predicted one is shown, without either the
    middle of the volume.

    Args:
        volume: ``[X, Y, Z]`` in R, A, S order; HU for CT.
        predicted: shaped as ``volume``, 0 or 1.
        target: likewise; None where nobody marked the case.
        affine: ``[4, 4]``, voxel index to mm.
        title: the case, any text, or none; volumes and Dice are added.
        path: the PNG to write.
        window: level and width in HU; None: from the 1st to the 99th percentile.

    Returns:
        `path`.

    Raises:
        UserError: shapes differ or are not three-dimensional, or the file cannot be written.
    """
    scene = make_scene(volume, predicted, target, affine=affine, window=window)
    views = list(_views(scene))
    side = max(max(view.extent) for view in views)
    with picture(path, width=13.4, height=7.6) as figure:
        figure.set_facecolor(_GROUND)
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.04, wspace=0.01, hspace=0.01)
        _heading(figure, title, f"{_figures(scene)} · {_setting(scene, window)}")
        cells = list(figure.subplots(2, _PANELS // 2).flat)
        for axes, view in zip(cells, views, strict=False):
            _draw(axes, view, levels=scene.levels)
            _frame(axes, view, limits=_square(view, side))
        for axes in cells[len(views) :]:
            axes.axis("off")
        if scene.lesion.any():
            _draw_enlarged(cells[-2:], scene, widest=side)
        _draw_key(figure, scene)
    return path


def best_median_worst(dice: Sequence[float], *, lesion: Sequence[bool], names: Sequence[str]) -> dict[str, int]:
    """Choose the cases worth a picture.

    Only cases with a lesion count, or all where none has one: silence on a healthy head is no picture. They are ordered
    by Dice and, where equal, by name, so that the choice does not depend on the order of the data; the median is the
    lower of two. Undefined Dice (NaN) is never chosen.

    Args:
        dice: N values.
        lesion: N, whether something is marked.
        names: N, unique.

    Returns:
        "best", "median" and "worst" to indices, each case once: of two cases the better is "best", the other "worst".
    """
    cases = [i for i, value in enumerate(dice) if np.isfinite(value)]
    chosen = [i for i in cases if lesion[i]] or cases
    order = sorted(chosen, key=lambda i: (dice[i], names[i]))
    if not order:
        return {}
    picked = {"best": order[-1], "worst": order[0], "median": order[(len(order) - 1) // 2]}
    unique = {index: word for word, index in reversed(picked.items())}  # of one case, "best" is what remains
    return {word: picked[word] for word in ("best", "median", "worst") if unique[picked[word]] == word}


# -------------------------------------------------------------------------------------------------------- what is shown


def _views(scene: Scene) -> Iterator[View]:
    wanted = _PANELS - (4 if scene.lesion.any() else 2)  # coronal, sagittal, and twice the enlarged bleed
    for index, words in sorted(_axial_slices(scene, wanted).items()):
        yield scene.view("axial", index, words)
    for axis, plane in ((1, PLANES[1]), (0, PLANES[0])):
        yield scene.view(plane, scene.widest(scene.lesion, axis))


def _axial_slices(scene: Scene, wanted: int) -> dict[int, str]:
    """Slice to words, at most `wanted`."""
    count = scene.image.shape[2]
    main = scene.widest(scene.lesion, 2)
    marked = scene.there is not None and scene.there.any()
    chosen = {main: ("largest bleed" if marked else "largest prediction") if scene.lesion.any() else ""}
    if scene.error.any():
        worst = scene.widest(scene.error, 2)
        chosen[worst] = f"{chosen[worst]}, largest error" if chosen.get(worst) else "largest error"
    step = max(1, round(_STEP_MM / scene.spacing[2]))
    near = sorted(range(main % step, count, step), key=lambda index: (abs(index - main), -index))
    for index in [*near, *range(count)]:
        if len(chosen) < wanted:
            chosen.setdefault(index, "")
    return chosen


def _figures(scene: Scene) -> str:
    predicted = f"predicted {np.count_nonzero(scene.found) * scene.ml:.2f} mL"
    if scene.there is None:
        return f"{predicted} · nothing marked to compare with"
    if not (scene.found.any() or scene.there.any()):
        return f"nothing marked · {predicted}"
    dice = float(dice_per_case(scene.found[None], target=scene.there[None])[0])
    return f"marked {np.count_nonzero(scene.there) * scene.ml:.2f} mL · {predicted} · Dice {dice:.3f}"


def _setting(scene: Scene, window: tuple[float, float] | None) -> str:
    low, high = scene.levels
    shown = (
        f"level {window[0]:g} width {window[1]:g} HU" if window else f"{low:.4g} to {high:.4g} (1st to 99th percentile)"
    )
    return "window " + shown + " · voxel {:.3g} × {:.3g} × {:.3g} mm".format(*scene.spacing)


# ------------------------------------------------------------------------------------------------------ how it is drawn


def _heading(figure: Figure, title: str, figures: str) -> None:
    clean = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    names = displayable([clean])
    shown = clean.encode("ascii", "replace").decode() if names.note else clean
    shown = shown if len(shown) <= _LONGEST_TITLE else shown[: _LONGEST_TITLE - 1] + "…"
    figure.suptitle(
        f"{shown}\n{figures}".strip().replace("$", r"\$"),
        x=0.01,
        ha="left",
        fontsize=12,
        fontfamily=names.fonts,
        color=_INK,
    )


def _draw(axes: Axes, view: View, *, levels: tuple[float, float], colours: bool = True) -> None:
    width, height = view.extent
    place: dict[str, Any] = {"extent": (0.0, width, height, 0.0), "aspect": "equal"}
    axes.imshow(view.image, cmap="gray", vmin=levels[0], vmax=levels[1], **place)
    if colours:
        axes.imshow(_fill(view), interpolation="nearest", **place)
        if view.there is not None and view.there.any():
            axes.add_collection(LineCollection(_outline(view.there, view.pixel), colors=CONTOUR, linewidths=0.9))


def _fill(view: View) -> NDArray[np.float32]:
    """Colours ``[H, W, 4]`` of what is predicted or missed."""
    there = view.found if view.there is None else view.there
    colours = np.zeros((*view.found.shape, 4), dtype=np.float32)
    for mask, colour in ((view.found & there, RIGHT), (view.found & ~there, WRONG), (there & ~view.found, MISSED)):
        colours[mask] = (*rgb(colour), FILL)
    return colours


def _outline(mask: NDArray[np.bool_], pixel: tuple[float, float]) -> list[NDArray[np.float64]]:
    """The border of `mask` along the edges of its pixels, mm: exact also for a bleed of a single voxel."""
    padded = np.pad(mask, 1)
    scale = np.asarray(pixel)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [np.array([(x, y), (x + 1, y)]) * scale for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return lines + [np.array([(x, y), (x, y + 1)]) * scale for y, x in zip(rows, columns, strict=True)]


def _square(view: View, side: float) -> _Limits:
    """A square around the slice: the same scale for all."""
    width, height = view.extent
    return (width - side) / 2, (width + side) / 2, (height + side) / 2, (height - side) / 2


def _frame(axes: Axes, view: View, *, limits: _Limits) -> None:
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    axes.set_facecolor("#000000")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(view.words, fontsize=9, fontweight="normal", color=_INK, pad=4)
    left, right, top, bottom = _LETTERS[view.plane]
    style = _ON_IMAGE | {"fontsize": 9, "fontweight": "bold", "transform": axes.transAxes}
    axes.text(0.015, 0.5, left, ha="left", va="center", **style)
    axes.text(0.985, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 0.985, top, ha="center", va="top", **style)
    axes.text(0.5, 0.015, bottom, ha="center", va="bottom", **style)
    _scale_bar(axes, limits[1] - limits[0])


def _scale_bar(axes: Axes, side: float) -> None:
    """A length of 1, 2 or 5 times a power of ten, at most a quarter of the picture."""
    power = 10.0 ** np.floor(np.log10(side / 4))
    length = next(power * factor for factor in (5, 2, 1) if power * factor <= side / 4)
    style = _ON_IMAGE | {"transform": axes.transAxes}
    axes.plot([0.03, 0.03 + length / side], [0.035, 0.035], linewidth=1.6, solid_capstyle="butt", **style)
    axes.text(0.03, 0.05, f"{length:g} mm", fontsize=7.5, va="bottom", **style)


def _draw_enlarged(cells: Sequence[Axes], scene: Scene, *, widest: float) -> None:
    """The largest patch of the bleed in its largest axial slice, with and without colours."""
    view = scene.view("axial", scene.widest(scene.lesion, 2), "enlarged")
    lesion = view.found if view.there is None or not view.there.any() else view.there
    patches, _ = label(lesion, np.ones((3, 3)))
    rows, columns = find_objects(patches)[int(np.bincount(patches.ravel())[1:].argmax())]
    across, down = view.pixel
    left, right, top, bottom = columns.start * across, columns.stop * across, rows.start * down, rows.stop * down
    least, margin = _ZOOM_MM
    half = min(max(least, right - left + 2 * margin, bottom - top + 2 * margin), widest) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    for axes, colours in zip(cells, (True, False), strict=True):
        axes.axis("on")
        _draw(axes, view, levels=scene.levels, colours=colours)
        shown = view if colours else replace(view, words="the same without colours")
        _frame(axes, shown, limits=(x - half, x + half, y + half, y - half))


def _draw_key(figure: Figure, scene: Scene) -> None:
    """Below the pictures, where it covers nothing."""
    words = {RIGHT: "predicted"}
    handles: list[Artist] = []
    if scene.there is not None:
        words = {RIGHT: "predicted and marked", WRONG: "predicted, not marked", MISSED: "marked, missed"}
        handles.append(Patch(facecolor="#4b5560", edgecolor=CONTOUR, linewidth=2, label="outline of what is marked"))
    handles.extend(Patch(color=colour, alpha=0.8, linewidth=0, label=text) for colour, text in words.items())
    handles.append(Line2D([], [], linestyle="none", label="R, L: the patient's right is on the left of the picture"))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), fontsize=9.5, handlelength=1.6, labelcolor=_INK
    )
