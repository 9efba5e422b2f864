"""How far the members of an ensemble disagree: members that always agree add cost and nothing else."""

from dataclasses import dataclass

import numpy as np

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_floats

__all__ = ["Disagreement", "disagreement"]


@dataclass(frozen=True)
class Disagreement:
    """Of K members on N pages.

    Attributes:
        votes: int64 [K, N] the class that each member chooses.
        pairs: [K, K] share of pages on which two members choose different classes; 0 on the diagonal.
        entropy: [N] of the votes for a page, nats: 0 where all agree, log K where each says something else.
    """

    votes: IntArray
    pairs: FloatArray
    entropy: FloatArray

    @property
    def mean(self) -> float:
        """Mean over the pairs of different members; 0 for a single one."""
        members = len(self.pairs)
        return float(self.pairs.sum() / max(members * (members - 1), 1))


def disagreement(probabilities: Array) -> Disagreement:
    """Compare the members' votes.

    Args:
        probabilities: [K, N, C].

    Raises:
        UserError: Another shape.
    """
    array = as_floats(probabilities, name="probabilities")
    if array.ndim != 3:
        raise UserError(f"probabilities have shape {array.shape}, expected [members, pages, classes]")
    votes = array.argmax(axis=2)
    counts = (votes[..., None] == np.arange(array.shape[2])).sum(axis=0)  # [N, C]
    shares = counts / len(array)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    pairs = np.array([(votes != vote).mean(axis=1) for vote in votes])
    return Disagreement(votes, pairs, np.abs((shares * logs).sum(axis=1)))
