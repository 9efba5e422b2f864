"""Answers of a model to what people send it: a file and texts in, plain values and pictures out.

Nothing that a client says becomes a path: a file lies under a name of ours in a private folder, its own name is text.
"""

import math
import re
import secrets
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.base.reading import check_unpacked, reading
from mlcore.run.predictor import Predictor
from mlcore.run.scorer import FURTHER, FolderScorer, Item, Prediction, Scorer, Showing, Shown

__all__ = ["Answering", "Upload", "unpacked"]

_ZIP = ".zip"
_MOST = 64  # things of one file that are answered, such as pages; `quartet predict` answers all
_KEPT = 16  # answers whose pictures and files can still be asked for
_FILES = 4096  # in an archive
_SIDE = 1000  # pixels, longer side of a picture
_POINTS, _CHANNELS = 500, 8  # of curves
_NAME = 120  # characters of a client's file name
_MADE = re.compile(r"\d+/\w+(\.[a-z]+)+")  # names of ours


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What came with one request.

    Attributes:
        path: The file, under a name of ours in a folder of its own; None: none came.
        name: What the client calls it; only ever shown.
        values: Texts by the name of their field.
    """

    path: Path | None = None
    name: str = "text"
    values: Mapping[str, str] = field(default_factory=dict)

    def told(self, text: str) -> str:
        """A text of ours, with the client's name of the file in place of ours."""
        own = [] if self.path is None else [str(self.path), str(self.path.with_suffix(""))]
        for path in own:
            text = text.replace(path, _plain(self.name))
        return text


class Answering:
    """Answers one request after another.

    Args:
        predictor: The model.
        folder: A private folder, for pictures and files of the last answers.

    Attributes:
        takes: Suffixes of files; none for a model of texts.
        fields: Names of texts.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self._scorer: Scorer = predictor.scorer
        self._folder = folder
        self._answers: OrderedDict[str, Path] = OrderedDict()
        takes = [*self._scorer.suffixes, *([_ZIP] if isinstance(self._scorer, FolderScorer) else [])]
        self.takes = takes if "path" in self._scorer.inputs else []
        texts = (name for name in self._scorer.inputs if not name.startswith(FURTHER))  # a client names no file of ours
        self.fields = [name for name in texts if name not in ("path", "part", "page")]

    def check_fields(self, names: Sequence[str]) -> None:
        """Refuse fields of a form that the model does not take."""
        known = [*(["file"] if self.takes else []), *self.fields]
        if wrong := [name for name in names if name not in known]:
            raise UserError(f"this model takes no '{_plain(wrong[0])}'; it takes {', '.join(known)}")

    def suffix_of(self, name: str) -> str:
        """The suffix of a client's file, one of ours; raises `UserError` where the model takes no such file."""
        found = [suffix for suffix in self.takes if name.lower().endswith(suffix)]
        if not found:
            raise UserError(f"{_plain(name)}: this model reads {', '.join(self.takes)}")
        return max(found, key=len)

    def __call__(self, upload: Upload) -> dict[str, Any]:
        """Predictions of what was sent, as JSON has it.

        Raises:
            UserError: None can be made at all; the message names the file as the client does.
        """
        try:
            items = self._items(upload)
            samples, problems = self._loaded(items[:_MOST])
            predictions = iter(self._predicted(samples))
            folder = self._new_folder()
            found = [
                {"input": item.name, "problem": problems[place]}
                if place in problems
                else self._described(item, next(predictions), folder / str(place))
                for place, item in enumerate(items[:_MOST])
            ]
        except UserError as error:
            raise UserError(upload.told(str(error))) from None
        for entry in found:
            entry |= {key: upload.told(entry[key]) for key in ("input", "problem") if key in entry}
        return {"predictions": found, "left_out": max(0, len(items) - _MOST)}

    def made(self, token: str, name: str) -> Path | None:
        """A picture or a file of one of the last answers, if it is one."""
        folder = self._answers.get(token)
        return folder / name if folder is not None and _MADE.fullmatch(name) else None

    def _items(self, upload: Upload) -> Sequence[Item]:
        values, path = tuple(sorted(upload.values.items())), upload.path
        if path is None:
            if self.takes or not values:
                raise UserError(f"nothing to predict came; this model reads {', '.join([*self.takes, *self.fields])}")
            return [Item(upload.name, values=values)]
        if path.suffix == _ZIP:
            path = unpacked(path, path.with_suffix(""))
        return [replace(item, values=values) for item in self._scorer.items(path)]

    def _loaded(self, items: Sequence[Item]) -> tuple[list[Any], dict[int, str]]:
        """Items that can be used, and by place the reasons why others cannot; where none can, that is an error."""
        samples, problems = list[Any](), dict[int, str]()
        for place, item in enumerate(items):
            try:
                samples.append(self._scorer.load(item))
            except UserError as error:
                problems[place] = str(error)
        if not samples:
            raise UserError(next(iter(problems.values()), "there is nothing in this file"))
        return samples, problems

    def _predicted(self, samples: Sequence[Any]) -> list[Prediction]:
        size = self._scorer.batch_size
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [one for part in parts for one in self._scorer.predict(self._scorer.collate(part))]

    def _described(self, item: Item, prediction: Prediction, folder: Path) -> dict[str, Any]:
        """The values of a prediction's row by column, and what is shown of it; pictures and files are in `folder`."""
        values = dict(zip(self._scorer.columns, map(_finite, prediction.row()), strict=True))
        if isinstance(self._scorer, Showing):
            shown = self._scorer.show(item, prediction)
        else:
            shown = Shown(answer=", ".join(f"{name} {value}" for name, value in values.items()))
        _draw(shown, folder)
        for name, write in shown.files.items():
            write(folder / name)
        address = f"/made/{folder.parent.name}/{folder.name}"
        return {
            "input": item.name,
            "values": values,
            "answer": shown.answer,
            "review": shown.review,
            "bars": shown.bars,
            "notes": list(shown.notes),
            "curves": {name: _thinned(curve) for name, curve in [*shown.curves.items()][:_CHANNELS]},
            "texts": {name: [[piece, _finite(share)] for piece, share in text] for name, text in shown.texts.items()},
            "pictures": [f"{address}/{number}.png" for number in range(len(shown.pictures))],
            "files": [f"{address}/{name}" for name in shown.files],
            "overlay": shown.overlaid if shown.overlays else "",
            "first": shown.first,
        }

    def _new_folder(self) -> Path:
        """Where pictures and files of one answer go; those of the oldest make room."""
        token = secrets.token_urlsafe(16)
        folder = self._answers[token] = self._folder / token
        folder.mkdir(mode=0o700)
        while len(self._answers) > _KEPT:
            shutil.rmtree(self._answers.popitem(last=False)[1], ignore_errors=True)
        return folder


def _plain(name: str) -> str:
    """A client's name of something, without folders and not too long."""
    return re.split(r"[/\\]", name)[-1][-_NAME:] or "input"


def unpacked(archive: Path, folder: Path) -> Path:
    """The files of a zip archive in a new folder, each under a number: no name in it leads anywhere.

    Raises:
        UserError: It is damaged or encrypted, or holds too much.
    """
    folder.mkdir(mode=0o700)
    with reading(archive, "a zip archive"), zipfile.ZipFile(archive) as found:
        files = [one for one in found.infolist() if not one.is_dir()]
        if len(files) > _FILES:
            raise UserError(f"{archive}: holds {len(files)} files; expected a study of at most {_FILES}")
        check_unpacked(archive, unpacked=sum(one.file_size for one in files), stored=archive.stat().st_size)
        for number, one in enumerate(files):
            with found.open(one) as source, (folder / f"{number:06d}").open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return folder


def _draw(shown: Shown, folder: Path) -> None:
    """Write the pictures of a prediction."""
    folder.mkdir(mode=0o700)
    for ending, pictures in (("", shown.pictures), ("_over", shown.overlays)):
        for number in range(len(pictures)):
            picture = Image.fromarray(pictures[number])
            picture.thumbnail((_SIDE, _SIDE))
            picture.save(folder / f"{number}{ending}.png", compress_level=1)


def _thinned(curve: NDArray[Any]) -> list[float | None]:
    """At most `_POINTS` values of a curve, every n-th."""
    step = max(1, -(-len(curve) // _POINTS))
    return [_finite(value) for value in curve[::step].tolist()]


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
