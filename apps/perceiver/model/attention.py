"""Attention blocks of the Perceiver.

Savings that change no result hold throughout: a layer norm that feeds only linear maps has no gain and bias of its own,
because the maps' weights and biases express them; queries that all samples share are projected once; where queries are
few, keys and values are never formed (see ``MultiHeadAttention``). Dropout acts on the residual branches and not on
the attention weights, so that the fused kernels of ``scaled_dot_product_attention`` serve training too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcore.base.errors import UserError

_FEW = 2**20  # products of a query and a key, of a sample: 2 MiB of them are kept for the backward pass


class MultiHeadAttention(nn.Module):
    """Multi-head attention from queries to a context ("Attention is all you need", section 3.2.2).

    With key and value maps K and V, attention is softmax(q·Kc) Vc = V softmax(Kᵀq·c) c. The right side moves both maps
    from the context to the queries, which is less work where queries or context channels are few, and is then taken.

    Args:
        d_model: Width of queries and outputs.
        num_heads: Number of heads; divides ``d_model``.
        context_dim: Width of the context; ``None``: ``d_model``.
        qk_channels: Width of projected queries and keys, all heads together; ``None``: ``d_model``.
        v_channels: The same of values.

    Raises:
        UserError: If ``num_heads`` does not divide ``d_model``, or whichever of these is given.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int,
        context_dim: int | None = None,
        qk_channels: int | None = None,
        v_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.widths = [qk_channels or d_model, v_channels or d_model]
        for name, width in zip(("qk_channels", "v_channels"), self.widths, strict=True):
            if num_heads < 1 or width % num_heads:
                called = "d_model" if width == d_model else name
                raise UserError(f"num_heads={num_heads} does not divide {called}={width}; choose a divisor")
        self.query = nn.Linear(d_model, self.widths[0])
        # Straight from the context's own width: embedding it to d_model first would cost more.
        self.key_value = nn.Linear(context_dim or d_model, sum(self.widths))
        self.out = nn.Linear(self.widths[1], d_model)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Lets every query gather from the context.

        Args:
            queries: ``[B, L, d_model]``, or ``[1, L, d_model]`` where all samples ask the same.
            context: ``[B, M, context_dim]``.
            mask: Boolean ``[B, M]``, true where the context may be seen; ``None``: everywhere.

        Returns:
            ``[B, L, d_model]``.

        Raises:
            UserError: If the mask is not boolean; numbers would be added to the scores.
        """
        if mask is not None and mask.dtype != torch.bool:
            raise UserError(f"an attention mask must be boolean, true where the context may be seen; got {mask.dtype}")
        seen = None if mask is None else mask[:, None, None, :]  # broadcasts over heads and queries
        if self._maps_belong_to_queries(queries.shape[1]):
            gathered = self._attend_with_mapped_queries(queries, context, seen)
        else:
            q, k, v = self._projected(queries, context)
            gathered = _attend(q.expand(k.shape[0], -1, -1, -1), k, v, seen)
        out: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return out

    def weights(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each query takes of each token of the context, to look at: ``[B, heads, L, M]``, rows sum to 1.

        Arguments are those of ``forward``, which never forms this matrix.
        """
        q, k, _ = self._projected(queries, context)
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        shares: Tensor = scores.softmax(dim=-1)
        return shares

    def _maps_belong_to_queries(self, num_queries: int) -> bool:
        """Compares multiplications per token, for a context at least as long as the queries.

        Not where any number may come.
        """
        if isinstance(num_queries, torch.SymInt):  # of an export, which would hold for fewer or for more only
            return False
        width, context_dim = sum(self.widths), self.key_value.in_features
        return 2 * num_queries * (2 * self.num_heads * context_dim - width) < context_dim * width

    def _projected(self, queries: Tensor, context: Tensor) -> list[Tensor]:
        """Queries, keys, values, ``[B or 1, heads, L or M, head width]``; one product where tokens see each other."""
        if queries is context:
            maps = (self.query, self.key_value)
            weight, bias = torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps])
            parts = torch.split(F.linear(context, weight, bias), [self.widths[0], *self.widths], dim=-1)
        else:
            parts = (self.query(queries), *torch.split(self.key_value(context), self.widths, dim=-1))
        return [self._in_heads(part) for part in parts]

    def _in_heads(self, values: Tensor) -> Tensor:
        return torch.unflatten(values, -1, (self.num_heads, -1)).transpose(1, 2)

    def _attend_with_mapped_queries(self, queries: Tensor, context: Tensor, seen: Tensor | None) -> Tensor:
        q = self._in_heads(self.query(queries))
        heads, width = q.shape[1], q.shape[3]
        weights = torch.split(self.key_value.weight, self.widths)
        to_key, to_value = (torch.unflatten(weight, 0, (heads, -1)) for weight in weights)  # [heads, width, C] each
        # The key's bias adds the same number to all scores of a query, which the softmax takes out again.
        value_bias = self.key_value.bias[self.widths[0] :].view(heads, 1, -1)
        mapped = (q @ to_key).flatten(1, 2)[:, None]  # [B or 1, 1, heads * L, C]: one head, whose keys are the context
        tokens = context[:, None]
        found = _attend(mapped.expand(context.shape[0], -1, -1, -1), tokens, tokens, seen, scale=width**-0.5)
        found = found.view(found.shape[0], heads, -1, found.shape[3])  # [B, heads, L, C]
        gathered: Tensor = found @ to_value.transpose(1, 2) + value_bias
        return gathered


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v over what is `seen`; scale is by default one over the root of the heads' width."""
    is_bf16_on_cpu = q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if not (is_bf16_on_cpu and torch.is_grad_enabled() and q.shape[1] * q.shape[2] * k.shape[2] <= _FEW):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    # The backward pass of torch's fused kernel takes up to ten times as long as the products.
    scores = (q * (q.shape[3] ** -0.5 if scale is None else scale)) @ k.transpose(2, 3)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ v


class FeedForward(nn.Sequential):
    """Pre-normalised two-layer perceptron with GELU; ``[..., d_model]`` to the same shape."""

    def __init__(self, d_model: int, *, widening_factor: int) -> None:
        super().__init__(
            nn.LayerNorm(d_model, elementwise_affine=False),
            nn.Linear(d_model, widening_factor * d_model),
            nn.GELU(),
            nn.Linear(widening_factor * d_model, d_model),
        )


class CrossAttentionBlock(nn.Module):
    """Latents gather from the input: cross-attention, then a perceptron, both pre-normalised with a residual.

    Args:
        d_model: Width of the latents.
        num_heads: Number of heads; divides ``d_model``.
        context_dim: Width of the input tokens; ``None``: ``d_model``.
        widening_factor: Hidden width of the perceptron in units of ``d_model``.
        dropout: Probability of dropping an element of a residual branch, in [0, 1).
        **widths: Of the attention, see ``MultiHeadAttention``.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int,
        context_dim: int | None = None,
        widening_factor: int = 1,
        dropout: float = 0.0,
        **widths: int | None,
    ) -> None:
        super().__init__()
        self.latent_norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.context_norm = nn.LayerNorm(context_dim or d_model, elementwise_affine=False)
        self.attention = MultiHeadAttention(d_model, num_heads=num_heads, context_dim=context_dim, **widths)
        self.feed_forward = FeedForward(d_model, widening_factor=widening_factor)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps latents ``[B or 1, L, d_model]`` and context ``[B, M, context_dim]`` to ``[B, L, d_model]``.

        ``mask`` is boolean ``[B, M]``, true where the context may be seen.
        """
        attended = self.attention(self.latent_norm(latents), self.context_norm(context), mask)
        latents = latents + self.dropout(attended)
        out: Tensor = latents + self.dropout(self.feed_forward(latents))
        return out


class SelfAttentionBlock(nn.Module):
    """Latents gather from each other: the block of a pre-normalised transformer.

    Args:
        d_model: Width of the latents.
        num_heads: Number of heads; divides ``d_model``.
        widening_factor: Hidden width of the perceptron in units of ``d_model``.
        dropout: Probability of dropping an element of a residual branch, in [0, 1).
        **widths: Of the attention, see ``MultiHeadAttention``.
    """

    def __init__(
        self, d_model: int, *, num_heads: int, widening_factor: int = 1, dropout: float = 0.0, **widths: int | None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.attention = MultiHeadAttention(d_model, num_heads=num_heads, **widths)
        self.feed_forward = FeedForward(d_model, widening_factor=widening_factor)
        self.dropout = nn.Dropout(dropout)

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps ``[B, L, d_model]`` (and a mask ``[B, L]`` of those that may be seen) to ``[B, L, d_model]``."""
        normed = self.norm(latents)
        latents = latents + self.dropout(self.attention(normed, normed, mask))
        out: Tensor = latents + self.dropout(self.feed_forward(latents))
        return out
