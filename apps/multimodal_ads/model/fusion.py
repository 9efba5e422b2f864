"""How the vector of the picture and that of the text become one."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedFusion(nn.Module):
    """Gated multimodal unit (Arevalo et al. 2017, equation 1 of section 3.1): each unit chooses between the modalities.

    Both vectors are first brought to mean 0 and variance 1 (layer norm without weights): a sentence embedding of unit
    length is 0.05 in a typical element, and would hardly be heard beside a backbone's features.

    Args:
        vision_width: Of the picture's vector.
        text_width: Of the text's vector.
        width: Units H.
        facts: F, numbers that the gate is told besides.
    """

    def __init__(self, vision_width: int, text_width: int, *, width: int, facts: int = 0) -> None:
        super().__init__()
        self.width = width
        self.facts = facts
        self.vision = nn.Linear(vision_width, width)
        self.text = nn.Linear(text_width, width)
        self.gate = nn.Linear(vision_width + text_width + facts, width)

    def forward(self, vision: Tensor, text: Tensor, *facts: Tensor) -> tuple[Tensor, Tensor]:
        """Fused vectors [B, H], and the gate [B, H] in 0..1: the share of the picture in each unit; facts: [B, F]."""
        vision, text = (functional.layer_norm(vector, vector.shape[-1:]) for vector in (vision, text))
        gate = torch.sigmoid(self.gate(torch.cat([vision, text, *facts], dim=-1)))
        return gate * torch.tanh(self.vision(vision)) + (1 - gate) * torch.tanh(self.text(text)), gate


class ConcatFusion(nn.Module):
    """Both vectors at unit length, side by side.

    Args:
        vision_width: Of the picture's vector.
        text_width: Of the text's vector.
    """

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.width = vision_width + text_width

    def forward(self, vision: Tensor, text: Tensor) -> tuple[Tensor, None]:
        """Fused vectors [B, Dv + Dt]; there is no gate."""
        return torch.cat([functional.normalize(vision, dim=-1), functional.normalize(text, dim=-1)], dim=-1), None


class LateFusion(nn.Module):
    """Each modality has a logit of its own; they are added with learned weights, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [B] of those of picture and text [B, 2]."""
        return logits @ self.weights + self.bias


class Single(nn.Module):
    """One modality alone: an optional projection, then unit length.

    Args:
        width: Of the modality's vector.
        projection_dim: Width of the projection; None for none.
    """

    def __init__(self, width: int, *, projection_dim: int | None) -> None:
        super().__init__()
        self.width = width if projection_dim is None else projection_dim
        self.projection = nn.Identity() if projection_dim is None else nn.Linear(width, projection_dim)

    def forward(self, vector: Tensor) -> Tensor:
        """[B, width] at unit length."""
        return functional.normalize(self.projection(vector), dim=-1)
