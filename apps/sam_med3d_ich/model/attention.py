"""Self-attention over a 3-D grid with SAM-Med3D's relative-position bias, exact and without its padding.

The released encoder pads every window with zeros to `side`^3 tokens and attends over all of them. Padded tokens are
zero before the qkv layer, so their queries, keys and values are the parts of its bias: all padded keys are one vector,
and what they add to a softmax is one more key whose logit carries the log of the sum of their bias terms. That sum
factors over the axes, so it costs O(side^2) for a row of tokens. Real tokens therefore attend over real tokens and one
extra.

The bias is the released one (Wang et al. 2023, https://arxiv.org/abs/2310.15161), whose axes line up differently from
the decomposition in the ViTDet paper; the weights were trained that way:

    bias[qd, qh, qw; kd, kh, kw] = q[qd, qh, qw] . Rd[qd, kw] + q[qd, qh, kd] . Rh[qh, kw] + q[qd, qh, kh] . Rw[kh, kw]

with unscaled queries q and R[i, j] = rel_pos[i - j + side - 1]. The last two terms read the queries of other tokens in
the same (qd, qh) row.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NOTHING = -1e30  # the logarithm of an empty sum; finite, so that gradients are 0 and not NaN


class GridAttention(nn.Module):
    """Multi-head attention over the tokens of a box, as if the box were padded with zeros to a cube.

    Args:
        dim: Channels of a token.
        num_heads: Heads; must divide `dim`.
        side: Tokens along each side of the cube that the box is a corner of.
    """

    def __init__(self, dim: int, *, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.side = side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_d, self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Tokens [B, D, H, W, C], each side at most `side`.

        Returns:
            [B, D, H, W, C].
        """
        batch, *box, dim = x.shape
        heads, width = self.num_heads, dim // self.num_heads
        qkv = self.qkv(x).view(batch, -1, 3, heads, width).permute(2, 0, 3, 1, 4)  # [3, B, n, T, c]
        q, k, v = qkv.unbind(0)
        padding = self.qkv.bias.view(3, 1, heads, 1, width).to(q.dtype)  # a padded token's q, k, v
        bias = self._bias(q.unflatten(2, box), padding[0])
        if bias.padding is not None:
            extra = bias.of_row.shape[-2] * bias.of_row.shape[-1] - k.shape[2]
            k = torch.cat([k, padding[1].expand(batch, -1, extra, -1)], dim=2)
            v = torch.cat([v, padding[2].expand(batch, -1, extra, -1)], dim=2)
        y = _attend(q, k, v, bias)  # [B, n, T, c]
        y = y.transpose(1, 2).reshape(batch, *box, dim)
        projected: Tensor = self.proj(y)
        return projected

    def _bias(self, q: Tensor, q_padding: Tensor) -> "_Bias":
        """The terms of the bias.

        Args:
            q: [B, n, D, H, W, c].
            q_padding: Query of a padded token, [1, n, 1, c].
        """
        *_, d, h, w, _ = q.shape
        side = self.side
        row = q
        if w < side:  # the row of queries as the padded cube has it
            filler = q_padding[:, :, None, None].expand(*q.shape[:4], side - w, -1)
            row = torch.cat([q, filler], dim=4)
        by_d, by_h, by_w = (
            _offsets(table, side).to(q.dtype) for table in (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        )
        along_w = torch.einsum("bndhwc,dkc->bndhwk", q, by_d[:d])  # [B, n, D, H, W, kw]
        along_d = torch.einsum("bndhjc,hkc->bndhjk", row, by_h[:h])  # [B, n, D, H, kd, kw]
        along_h = torch.einsum("bndhjc,jkc->bndhjk", row, by_w)  # [B, n, D, H, kh, kw]
        of_row = (along_d[..., :d, None, :w] + along_h[..., None, :h, :w]).flatten(4, 5)  # [B, n, D, H, kd kh, kw]
        padding = None
        if (d, h, w) != (side, side, side):
            # A row of w more keys, so that one addition makes all of the bias; the first stands for the padding.
            of_row = F.pad(of_row, (0, 0, 0, 1), value=float("-inf"))
            padding = _log_sum_of_padding(along_w, along_d, along_h, box=(d, h, w)).flatten(2).to(of_row.dtype)
        return _Bias(of_row.contiguous(), along_w[..., :w].contiguous(), padding)


class _Bias(NamedTuple):
    """Terms of the bias of T = D H W queries and R W keys, R being D H, and one more where there is padding.

    Attributes:
        of_row: What a row of queries shares, [B, n, D, H, R, W].
        along_w: What keys with the same kw share, [B, n, D, H, W, W].
        padding: The bias of the one key that stands for all padded ones, [B, n, T]; it comes at place T.
    """

    of_row: Tensor
    along_w: Tensor
    padding: Tensor | None

    def dense(self) -> Tensor:
        """The sum, [B, n, T, R W]."""
        *_, rows, width = self.of_row.shape
        if self.of_row.device.type == "cpu":
            # As a product with ones, since sums whose last axis is short are slow there; in bf16 by three times.
            places = torch.eye(width, dtype=self.of_row.dtype).repeat(1, rows)  # [W, R W]
            bias = self.along_w @ places
            bias += self.of_row.flatten(4)[..., None, :]
            bias = bias.flatten(2, 4)
        else:
            bias = (self.of_row[:, :, :, :, None] + self.along_w[..., None, :]).flatten(5).flatten(2, 4)
        if self.padding is not None:
            bias[..., bias.shape[2]] = self.padding
        return bias


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: _Bias) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v, [B, n, T, c]."""
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # torch has no fused kernel for the CPU that passes gradients on to a bias; its plain one makes several copies.
        attended: Tensor = _CpuAttention.apply(q, k, v, *bias)
        return attended
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.dense())


class _CpuAttention(torch.autograd.Function):
    """Attention that keeps one matrix of T x R W numbers, the probabilities, and makes its gradients in place."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, of_row: Tensor, along_w: Tensor, padding: Tensor | None
    ) -> Tensor:
        """See `_attend`."""
        weights = _Bias(of_row, along_w, padding).dense()  # [B, n, T, R W]
        flat = weights.flatten(0, 1)
        torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=q.shape[-1] ** -0.5, out=flat)
        torch.softmax(weights, dim=-1, out=weights)
        y = weights @ v
        ctx.save_for_backward(q, k, v, weights, y)
        ctx.shapes = of_row.shape, along_w.shape, padding is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all arguments."""
        q, k, v, weights, y = ctx.saved_tensors
        (*lead, rows, _), (*_, width, _), padded = ctx.shapes
        scale = q.shape[-1] ** -0.5
        grad_v = weights.mT @ grad
        logits = grad @ v.mT  # becomes the gradient of the logits: p (dp - sum p dp)
        logits -= (grad * y).sum(dim=-1, keepdim=True)
        logits *= weights
        grad_q, grad_k = (logits @ k).mul_(scale), (logits.mT @ q).mul_(scale)
        grad_padding = logits[..., logits.shape[2]].clone() if padded else None
        if padded:
            logits[..., logits.shape[2]] = 0.0
        by_key = logits.view(*lead, width, rows, width)  # [B, n, D, H, W, R, W]
        return grad_q, grad_k, grad_v, by_key.sum(dim=4), by_key.sum(dim=5), grad_padding


def _offsets(table: Tensor, side: int) -> Tensor:
    """[2 side - 1, c] to [side, side, c]: entry (i, j) is `table[i - j + side - 1]`."""
    index = torch.arange(side, device=table.device)
    return table[index[:, None] - index[None, :] + side - 1]


def _log_sum_of_padding(along_w: Tensor, along_d: Tensor, along_h: Tensor, *, box: tuple[int, int, int]) -> Tensor:
    """Log of the sum of exp(bias) over the padded keys, for each query; [B, n, D, H, W], float32 or better.

    Each sum is over one axis at a time and skips the real keys, so nothing cancels.
    """
    d, h, w = box
    along_w, along_d, along_h = (_at_least_float32(term) for term in (along_w, along_d, along_h))
    depth, height = (torch.logsumexp(term, dim=-2) for term in (along_d, along_h))  # [B, n, D, H, kw], over all kd, kh
    # With a padded kw every key counts; with a real one those whose kd is padded, or else whose kh is.
    deep = _log_sum(along_d[..., d:, :w]) + height[..., :w]
    high = _log_sum(along_d[..., :d, :w]) + _log_sum(along_h[..., h:, :w])
    sums = torch.cat([torch.logaddexp(deep, high), depth[..., w:] + height[..., w:]], dim=-1)
    return torch.logsumexp(along_w + sums[:, :, :, :, None], dim=-1)


def _log_sum(terms: Tensor) -> Tensor:
    """Log of the sum of exponentials over the last axis but one, which may be empty."""
    if terms.shape[-2] == 0:
        return terms.new_full((*terms.shape[:-2], terms.shape[-1]), _NOTHING)
    return torch.logsumexp(terms, dim=-2)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
