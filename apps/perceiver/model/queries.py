"""Outputs for single positions: each is asked for by a query of its own (Perceiver IO, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model.decoder import PerceiverDecoder
from quartet.apps.perceiver.model.encoder import PerceiverEncoder, PerceiverOptions


class PerceiverQueries(nn.Module):
    """Perceiver IO whose queries are positions of the input: where they are, and what may be seen there.

    A query is a linear map of a position's features and of the channels of the input that are ``visible`` to it, as for
    optical flow in the paper (section 4.3); other channels may hold what is to be found, or nothing.

    Args:
        input_dim: Channels of a token.
        d_model: Width of latents and queries.
        num_heads: Heads of every attention; divides ``d_model``.
        num_classes: Channels of an output.
        visible: Channels of the input that a query sees.
        options: Positions, dropout and the rest; ``pooling`` has no part here.
        **layers: Numbers of layers and latents, as ``PerceiverEncoder`` has them.

    Raises:
        UserError: Queries would all be the same, or as ``PerceiverEncoder``.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        d_model: int,
        num_heads: int,
        num_classes: int,
        visible: Sequence[int],
        options: PerceiverOptions,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.encoder = PerceiverEncoder(input_dim, d_model=d_model, num_heads=num_heads, options=options, **layers)
        if not self.encoder.positions.width:
            raise UserError(f"model.position={options.position}: queries are told apart by positions; take another one")
        if options.position == "learned" and options.patch > 1:
            raise UserError("model.position=learned knows patches, not the steps that are asked for; take another")
        self.decoder = PerceiverDecoder(
            d_model,
            num_heads=num_heads,
            num_outputs=num_classes,
            num_queries=0,
            widening_factor=options.widening_factor,
            dropout=options.dropout,
        )
        self.visible = list(visible)
        self.embed = nn.Linear(len(self.visible) + self.encoder.positions.width, d_model)

    def forward(self, x: Tensor, mask: Tensor | None, query: Tensor) -> Tensor:
        """Answers the queries of a batch.

        Args:
            x: Tokens, floating point ``[B, M, input_dim]``.
            mask: ``[B, M]``, true where the encoder may see a token; ``None``: everywhere.
            query: int64 ``[B, K]``, the positions that are asked for, below M, whether they may be seen or not.

        Returns:
            ``[B, K, num_classes]``; no answer depends on the other queries.

        Raises:
            UserError: As ``PerceiverEncoder.forward``.
        """
        dtype = self.encoder.latents.dtype
        features = [self.encoder.positions.at(self.encoder.places(x, query), dtype)]
        if self.visible:
            seen = self.encoder.values(x)[..., self.visible].to(dtype)
            seen = torch.where(seen.isfinite(), seen, 0.0)  # what is missing is not known there either
            features.append(seen.gather(1, query[..., None].expand(-1, -1, len(self.visible))))
        outputs: Tensor = self.decoder(self.encoder(x, mask), self.embed(torch.cat(features, dim=-1)))
        return outputs
