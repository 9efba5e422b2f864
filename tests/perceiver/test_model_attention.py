"""The attention blocks against attention written out in full, in double precision."""

import math

import pytest
import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model import CrossAttentionBlock, MultiHeadAttention, SelfAttentionBlock

EXACT = {"rtol": 0.0, "atol": 1e-10}


def written_out_attention(layer: MultiHeadAttention, queries: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """One sample, head and query at a time, from the definition."""
    heads = layer.num_heads
    width = queries.shape[-1] // heads
    keys, values = layer.key_value(context).chunk(2, dim=-1)
    asked = layer.query(queries)
    rows = []
    for b in range(context.shape[0]):
        seen = slice(None) if mask is None else mask[b].nonzero().flatten()
        for q in asked[b if asked.shape[0] > 1 else 0]:
            parts = []
            for h in range(heads):
                piece = slice(h * width, (h + 1) * width)
                scores = keys[b, seen, piece] @ q[piece] / math.sqrt(width)
                parts.append(torch.softmax(scores, dim=0) @ values[b, seen, piece])
            rows.append(torch.cat(parts))
    return layer.out(torch.stack(rows).view(context.shape[0], -1, queries.shape[-1]))


@pytest.mark.parametrize("masked", [False, True])
def test_the_weights_are_those_that_make_the_output(masked: bool) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, num_heads=2, context_dim=6).double()
    queries, context = torch.randn(1, 3, 8).double(), torch.randn(4, 7, 6).double()
    mask = padding_mask(4, 7) if masked else None
    weights = layer.weights(queries, context, mask)
    assert weights.shape == (4, 2, 3, 7)
    values = layer.key_value(context).unflatten(-1, (2, 2, -1))[:, :, 1].transpose(1, 2)
    gathered = layer.out((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(gathered, layer(queries, context, mask), **EXACT)
    if mask is not None:
        assert not weights[~mask[:, None, None, :].expand_as(weights)].any()


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def feed_forward(layer: nn.Sequential, x: Tensor) -> Tensor:
    hidden = norm(x) @ layer[1].weight.T + layer[1].bias
    return (0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))) @ layer[3].weight.T + layer[3].bias


def padding_mask(batch: int, length: int) -> Tensor:
    return torch.arange(length)[None] < torch.arange(length - batch + 1, length + 1)[:, None]


# (context channels, queries): the first three move the key and value maps to the queries, the last two do not.
SHAPES = [(3, 5), (16, 1), (4, 2), (16, 5), (40, 9)]


@pytest.mark.parametrize(("context_dim", "num_queries"), SHAPES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_block_equals_the_definition(
    context_dim: int, num_queries: int, shared: bool, masked: bool
) -> None:
    torch.manual_seed(0)
    block = CrossAttentionBlock(16, num_heads=4, context_dim=context_dim, widening_factor=2).double()
    latents = torch.randn(1 if shared else 3, num_queries, 16, dtype=torch.float64)
    context = torch.randn(3, 11, context_dim, dtype=torch.float64)
    mask = padding_mask(3, 11) if masked else None

    attended = latents + written_out_attention(block.attention, norm(latents), norm(context), mask)
    expected = attended + feed_forward(block.feed_forward, attended)

    torch.testing.assert_close(block(latents, context, mask), expected, **EXACT)


def test_both_orders_of_the_maps_are_reached() -> None:
    taken = [
        MultiHeadAttention(16, num_heads=4, context_dim=dim)._maps_belong_to_queries(queries) for dim, queries in SHAPES
    ]
    assert taken == [True, True, True, False, False]


@pytest.mark.parametrize("masked", [True, False])
def test_self_attention_block_equals_the_definition(masked: bool) -> None:
    torch.manual_seed(0)
    block = SelfAttentionBlock(16, num_heads=2, widening_factor=3).double()
    latents = torch.randn(3, 7, 16, dtype=torch.float64)
    mask = padding_mask(3, 7) if masked else None

    attended = latents + written_out_attention(block.attention, norm(latents), norm(latents), mask)
    expected = attended + feed_forward(block.feed_forward, attended)

    torch.testing.assert_close(block(latents, mask), expected, **EXACT)


@pytest.mark.parametrize(("context_dim", "num_queries"), [(3, 2), (8, 6)])
def test_gradients_equal_those_of_the_definition(context_dim: int, num_queries: int) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, num_heads=2, context_dim=context_dim).double()
    queries = torch.randn(1, num_queries, 8, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 9, context_dim, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, num_queries, 8, dtype=torch.float64)
    wanted = [queries, context, *layer.parameters()]

    ours = torch.autograd.grad((layer(queries, context) * weights).sum(), wanted)
    theirs = torch.autograd.grad((written_out_attention(layer, queries, context, None) * weights).sum(), wanted)

    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, **EXACT)


@pytest.mark.parametrize("kind", ["self", "mapped context", "mapped queries"])
def test_bfloat16_stays_near_in_value_and_gradients(kind: str) -> None:
    torch.manual_seed(0)
    channels = 3 if kind == "mapped queries" else 32
    exact = MultiHeadAttention(32, num_heads=2, context_dim=channels).double()
    half = MultiHeadAttention(32, num_heads=2, context_dim=channels)
    half.load_state_dict({name: value.float() for name, value in exact.state_dict().items()})
    context = torch.randn(3, 21, channels, dtype=torch.float64)
    queries = context if kind == "self" else torch.randn(3, 20, 32, dtype=torch.float64)
    assert half._maps_belong_to_queries(queries.shape[1]) == (kind == "mapped queries")
    given = queries.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = half(given, given if kind == "self" else context.float(), padding_mask(3, 21))
    assert found.dtype == torch.bfloat16
    expected = exact(queries, context, padding_mask(3, 21))
    assert float((found - expected).detach().norm()) < 0.02 * float(expected.detach().norm())  # a rounding: 0.4 %

    found.float().square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(half.parameters(), exact.parameters(), strict=True):
        assert float((mine.grad - theirs.grad).norm()) < 0.05 * max(float(theirs.grad.norm()), 0.1)


@pytest.mark.parametrize(("context_dim", "num_queries"), [(3, 1), (6, 4)])
def test_gradcheck(context_dim: int, num_queries: int) -> None:
    torch.manual_seed(0)
    block = CrossAttentionBlock(4, num_heads=2, context_dim=context_dim).double()
    latents = torch.randn(2, num_queries, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 5, context_dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (latents, context, padding_mask(2, 5)))


@pytest.mark.parametrize("num_heads", [0, 3, 32])
def test_heads_that_do_not_divide_the_width_are_named(num_heads: int) -> None:
    with pytest.raises(UserError, match=f"num_heads={num_heads} does not divide d_model=16"):
        MultiHeadAttention(16, num_heads=num_heads)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    block = SelfAttentionBlock(16, num_heads=2, dropout=0.5)
    latents = torch.randn(2, 4, 16)
    assert not torch.equal(block(latents), block(latents))
    block.eval()
    assert torch.equal(block(latents), block(latents))
