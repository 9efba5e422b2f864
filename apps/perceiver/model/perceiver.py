"""Complete Perceivers: the classifier, Perceiver IO, and the three named sizes."""

from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model.decoder import PerceiverDecoder
from quartet.apps.perceiver.model.encoder import Inputs, PerceiverEncoder, PerceiverOptions

ModelSize = Literal["base", "large", "small"]


@dataclass(frozen=True, kw_only=True)
class PerceiverSize:
    """The five numbers that make a Perceiver small or large; named as the arguments of ``PerceiverModel``.

    ``num_self_attention_layers`` follow **each** of the ``num_cross_attention_layers``, as in the paper.
    """

    d_model: int
    num_heads: int
    num_latents: int
    num_cross_attention_layers: int
    num_self_attention_layers: int


SIZES: dict[str, PerceiverSize] = {
    "small": PerceiverSize(
        d_model=256, num_heads=4, num_latents=128, num_cross_attention_layers=1, num_self_attention_layers=3
    ),
    "base": PerceiverSize(
        d_model=512, num_heads=8, num_latents=256, num_cross_attention_layers=1, num_self_attention_layers=6
    ),
    "large": PerceiverSize(
        d_model=768, num_heads=12, num_latents=512, num_cross_attention_layers=2, num_self_attention_layers=8
    ),
}


class PerceiverModel(nn.Module):
    """Perceiver classifier (arXiv 2103.03206).

    Args:
        input_dim: Channels of a token.
        d_model: Width of the latents.
        num_heads: Heads of every attention; divides ``d_model``.
        num_cross_attention_layers: How often the latents look at the input.
        num_self_attention_layers: Self-attention blocks after each look.
        num_latents: Number of latents.
        num_classes: Number of classes.
        options: Positions, dropout and the rest; see ``PerceiverOptions``.

    Raises:
        UserError: If a number is out of range or ``num_heads`` does not divide ``d_model``.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        d_model: int = 512,
        num_heads: int = 8,
        num_cross_attention_layers: int = 1,
        num_self_attention_layers: int = 6,
        num_latents: int = 256,
        num_classes: int,
        options: PerceiverOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or PerceiverOptions()
        if num_classes < 1:
            raise UserError(f"num_classes must be at least 1, not {num_classes}")
        self.encoder = PerceiverEncoder(
            input_dim,
            d_model=d_model,
            num_heads=num_heads,
            num_cross_attention_layers=num_cross_attention_layers,
            num_self_attention_layers=num_self_attention_layers,
            num_latents=num_latents,
            options=options,
        )
        self.head: MeanHead | PerceiverDecoder
        if options.pooling == "mean":
            self.head = MeanHead(d_model, num_classes=num_classes)
        elif options.pooling == "query":
            self.head = PerceiverDecoder(
                d_model,
                num_heads=num_heads,
                num_outputs=num_classes,
                widening_factor=options.widening_factor,
                dropout=options.dropout,
            )
        else:
            raise UserError(f"pooling must be mean or query, not {options.pooling!r}")

    def forward(self, x: Inputs, mask: Tensor | None = None) -> Tensor:
        """Classifies a batch of sequences.

        Args:
            x: Tokens, floating point ``[B, M, input_dim]``; padding at the end of a row. Or raw samples, with a mask.
            mask: ``[B, M]``, boolean or numbers, true or 1 where a token is real, else 0; ``None``: everywhere.

        Returns:
            Logits ``[B, num_classes]``.

        Raises:
            UserError: If a shape does not fit, a mask holds other numbers, or a sample has no real token.
        """
        logits: Tensor = self.head(self.encoder(x, mask))
        return logits.flatten(1)  # a decoder's one query gives [B, 1, num_classes]


class MeanHead(nn.Module):
    """Classes from the mean of the normalised latents: ``[B, L, d_model]`` to ``[B, num_classes]``."""

    def __init__(self, d_model: int, *, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.project = nn.Linear(d_model, num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        """Pools and projects."""
        logits: Tensor = self.project(self.norm(latents).mean(dim=1))
        return logits


class PerceiverIO(nn.Module):
    """An encoder and a decoder: any input array to any output array (arXiv 2107.14795).

    Args:
        encoder: Tokens to latents.
        decoder: Latents and queries to outputs.
    """

    def __init__(self, encoder: PerceiverEncoder, *, decoder: PerceiverDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Maps tokens ``[B, M, C]`` to ``[B, K, num_outputs]``.

        ``queries`` are ``[K, d_model]``, ``[B, K, d_model]``, or ``None`` for the decoder's learned ones.
        """
        outputs: Tensor = self.decoder(self.encoder(x, mask), queries)
        return outputs


def create_perceiver_model(
    input_dim: int,
    num_classes: int,
    model_size: ModelSize = "base",
    *,
    options: PerceiverOptions | None = None,
) -> PerceiverModel:
    """Builds a classifier of a named size.

    Args:
        input_dim: Channels of a token.
        num_classes: Number of classes.
        model_size: ``small``, ``base`` or ``large``; ``SIZES`` says what they are.
        options: Positions, dropout and the rest.

    Raises:
        UserError: If there is no such size.
    """
    if model_size not in SIZES:
        raise UserError(f"model_size must be one of {', '.join(SIZES)}; got {model_size!r}")
    return PerceiverModel(input_dim, num_classes=num_classes, options=options, **asdict(SIZES[model_size]))
