"""The Perceiver IO decoder: as many outputs as there are queries, at a cost that grows with the queries alone."""

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model.attention import CrossAttentionBlock


class PerceiverDecoder(nn.Module):
    """Each query gathers from the latents and becomes one output (Perceiver IO, section 3.2).

    Args:
        d_model: Width of latents and queries.
        num_heads: Number of heads; divides ``d_model``.
        num_outputs: Channels of one output.
        num_queries: Number of learned queries; 0: the caller gives queries.
        widening_factor: Hidden width of the perceptron in units of ``d_model``.
        dropout: Probability of dropping an element of a residual branch, in [0, 1).
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int,
        num_outputs: int,
        num_queries: int = 1,
        widening_factor: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, d_model)) if num_queries else None
        if self.queries is not None:
            nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)
        self.block = CrossAttentionBlock(d_model, num_heads=num_heads, widening_factor=widening_factor, dropout=dropout)
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.project = nn.Linear(d_model, num_outputs)

    def forward(self, latents: Tensor, queries: Tensor | None = None) -> Tensor:
        """Decodes the latents.

        Args:
            latents: ``[B, L, d_model]``.
            queries: ``[K, d_model]`` for all samples or ``[B, K, d_model]``; ``None``: the learned ones.

        Returns:
            ``[B, K, num_outputs]``.

        Raises:
            UserError: If there are no queries, or their shape does not fit.
        """
        if queries is None:
            queries = self.queries
        if queries is None:
            raise UserError("a decoder without learned queries (num_queries=0) must be given some")
        if queries.dim() == 2:
            queries = queries[None]
        if queries.dim() != 3 or queries.shape[0] not in (1, latents.shape[0]) or queries.shape[2] != latents.shape[2]:
            raise UserError(
                f"expected queries of shape [K, {latents.shape[2]}] or [{latents.shape[0]}, K, {latents.shape[2]}], "
                f"got {list(queries.shape)}"
            )
        outputs: Tensor = self.project(self.norm(self.block(queries, latents)))
        return outputs
