"""From a backbone's tokens to one vector for each picture; masked tokens have no say."""

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.vision.interface import Tokens


class MeanPooling(nn.Module):
    """The mean of the tokens that are there."""

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, D] from tokens [B, T, D]."""
        if tokens.mask is None:
            return tokens.values.mean(dim=1)
        weights = tokens.mask.to(tokens.values.dtype).unsqueeze(-1)  # [B, T, 1]
        return (tokens.values * weights).sum(dim=1) / weights.sum(dim=1)


class SummaryPooling(nn.Module):
    """The backbone's own summary: its CLS token, or SigLIP's pooled output.

    Args:
        has_summary: Whether the backbone has one.

    Raises:
        UserError: It has none.
    """

    def __init__(self, *, has_summary: bool) -> None:
        super().__init__()
        if not has_summary:
            raise UserError(
                "pooling=cls: this backbone has no summary token (convolutional networks have none); "
                "choose pooling=mean or pooling=attention"
            )

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, D]."""
        assert tokens.summary is not None  # noqa: S101 - the backbone has one
        return tokens.summary


class AttentionPooling(nn.Module):
    """Multi-head attention of one learned query over the tokens (Lee et al. 2019, "Set Transformer", with one seed).

    With a single query the key projection folds into it, and the value projection can follow the weighted mean: the
    same function as standard attention, at heads instead of width products for each token.

    Args:
        width: D, a multiple of `num_heads`.
        num_heads: Heads, each with weights of its own.

    Raises:
        UserError: The width is no multiple of the number of heads.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"pooling.num_heads={num_heads}: the backbone's width {width} is no multiple of it")
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(num_heads, width) * width**-0.5)
        self.value = nn.Parameter(torch.empty(num_heads, width, width // num_heads))
        self.output = nn.Linear(width, width)
        nn.init.normal_(self.value, std=width**-0.5)

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, D] from tokens [B, T, D]."""
        values = self.norm(tokens.values)
        scores = torch.einsum("btd,hd->bht", values, self.queries)
        if tokens.mask is not None:
            scores = scores.masked_fill(~tokens.mask.unsqueeze(1), float("-inf"))
        pooled = scores.softmax(dim=-1) @ values  # [B, heads, D]
        mixed: Tensor = self.output(torch.einsum("bhd,hde->bhe", pooled, self.value).flatten(1))
        return mixed
