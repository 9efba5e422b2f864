"""The encoder without padding is the padded one: values and gradients, against its plain quadratic definition."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quartet.apps.sam_med3d_ich.model.attention import GridAttention
from quartet.apps.sam_med3d_ich.model.encoder import Block, EncoderShape, ImageEncoder

Fill = Callable[..., None]
SIDE = 4
BOXES = [(2, 2, 2), (4, 4, 4), (1, 1, 1), (4, 4, 3), (4, 3, 4), (3, 4, 4), (2, 3, 4), (4, 1, 2), (1, 4, 3), (3, 1, 1)]


# ----------------------------------------------------------------------------------------- the plain, padded definition


def padded_attention(attention: GridAttention, x: Tensor) -> Tensor:
    """All tokens of the zero-padded cube attend to all others; then the box is cut out."""
    batch, *box, dim = x.shape
    side, heads = attention.side, attention.num_heads
    cube = x.new_zeros(batch, side, side, side, dim)
    cube[:, : box[0], : box[1], : box[2]] = x
    qkv = attention.qkv(cube).view(batch, side, side, side, 3, heads, dim // heads)
    q, k, v = qkv.permute(4, 0, 5, 1, 2, 3, 6)  # each [B, n, S, S, S, c]
    logits = torch.einsum("bnxyzc,bndhwc->bnxyzdhw", q, k) / (dim // heads) ** 0.5
    for d, h, w in product(range(side), repeat=3):  # one key at a time, term by term as the released bias is defined
        for x_, y_ in product(range(side), repeat=2):
            row = q[:, :, x_, y_]  # [B, n, S, c]
            by_d = row @ attention.rel_pos_d[x_ - w + side - 1]  # of each query along w
            by_h = row[:, :, d] @ attention.rel_pos_h[y_ - w + side - 1]
            by_w = row[:, :, h] @ attention.rel_pos_w[h - w + side - 1]
            logits[:, :, x_, y_, :, d, h, w] = logits[:, :, x_, y_, :, d, h, w] + by_d + (by_h + by_w)[..., None]
    weights = logits.flatten(5).softmax(-1).unflatten(-1, (side, side, side))
    y = torch.einsum("bnxyzdhw,bndhwc->bxyznc", weights, v).flatten(4)
    projected: Tensor = attention.proj(y)
    return projected[:, : box[0], : box[1], : box[2]]


def padded_block(block: Block, x: Tensor, *, windowed: bool) -> Tensor:
    """Windows are cut from a grid that is padded at the far ends after the first normalisation."""
    side, (batch, *grid, dim) = block.attn.side, x.shape
    y = block.norm1(x)
    if windowed:
        whole = [-(-size // side) * side for size in grid]
        padded = y.new_zeros(batch, *whole, dim)
        padded[:, : grid[0], : grid[1], : grid[2]] = y
        out = torch.zeros_like(padded)
        for d, h, w in product(*(range(0, size, side) for size in whole)):
            index = (slice(None), slice(d, d + side), slice(h, h + side), slice(w, w + side))
            out[index] = padded_attention(block.attn, padded[index])
        y = out[:, : grid[0], : grid[1], : grid[2]]
    else:
        y = padded_attention(block.attn, y)
    x = x + y
    z: Tensor = x + block.mlp.lin2(F.gelu(block.mlp.lin1(block.norm2(x))))
    return z


def channel_norm(x: Tensor, norm: nn.Module) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    scaled = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]


def padded_encoder(encoder: ImageEncoder, image: Tensor) -> Tensor:
    x = encoder.patch_embed.proj(image).permute(0, 2, 3, 4, 1) + encoder.pos_embed
    for index, block in enumerate(encoder.blocks):
        x = padded_block(block, x, windowed=index not in encoder.shape.global_blocks)
    first, norm, second, last = encoder.neck
    return channel_norm(second(channel_norm(first(x.permute(0, 4, 1, 2, 3)), norm)), last)


# ------------------------------------------------------------------------------------------------------------- helpers


def close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-9) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm() + 1e-12)


def gradients(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of the output, by name; of the input under ""."""
    x = x.detach().requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    named = {"": x, **dict(module.named_parameters())}
    return dict(zip(named, torch.autograd.grad((y * weights).sum(), list(named.values())), strict=True))


def attention(filled: Fill, *, dtype: torch.dtype = torch.float64) -> GridAttention:
    module = GridAttention(8, num_heads=2, side=SIDE).to(dtype)
    filled(module, scale=0.7)
    return module


def tokens(box: Sequence[int], *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, *box, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def encoder(filled: Fill, *, grid: int, window: int, checkpointing: bool = False) -> ImageEncoder:
    shape = EncoderShape(
        image_size=2 * grid,
        patch_size=2,
        embed_dim=8,
        depth=3,
        num_heads=2,
        window=window,
        global_blocks=(1,),
        out_channels=6,
    )
    module = ImageEncoder(shape, gradient_checkpointing=checkpointing).double()
    filled(module, scale=0.4)
    return module


def volume(side: int) -> Tensor:
    return torch.randn(2, 1, side, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("differentiable", [True, False])
def test_a_box_attends_as_if_it_were_padded_to_a_cube(
    filled: Fill, box: tuple[int, int, int], differentiable: bool
) -> None:
    module, x = attention(filled), tokens(box)
    with torch.set_grad_enabled(differentiable):
        assert close(module(x).detach(), padded_attention(module, x).detach())


@pytest.mark.parametrize("box", BOXES)
def test_a_box_has_the_gradients_of_the_cube(filled: Fill, box: tuple[int, int, int]) -> None:
    module, x = attention(filled), tokens(box)
    expected = gradients(lambda x: padded_attention(module, x), x, module)
    found = gradients(module, x, module)
    assert expected.keys() == found.keys()
    assert {name for name in expected if not close(found[name], expected[name])} == set()
    assert all(expected[name].any() for name in ("rel_pos_d", "rel_pos_h", "rel_pos_w", "qkv.bias"))


def test_extreme_logits_stay_finite(filled: Fill) -> None:
    module = attention(filled, dtype=torch.float32)
    with torch.no_grad():
        module.rel_pos_w *= 60
        module.rel_pos_h *= 60
    x = tokens((2, 3, 4), dtype=torch.float32) * 10
    found = gradients(module, x, module)
    assert all(value.isfinite().all() for value in found.values())
    exact = attention(filled)
    exact.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    with torch.no_grad():
        assert close(module(x).double(), padded_attention(exact, x.double()), tolerance=1e-3)


def test_half_precision_stays_near(filled: Fill) -> None:
    module = GridAttention(64, num_heads=4, side=6)
    filled(module, scale=0.1)
    x = torch.randn(2, 4, 5, 3, 64, generator=torch.Generator().manual_seed(1))
    exact = GridAttention(64, num_heads=4, side=6).double()
    exact.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    expected = gradients(exact, x.double(), exact)
    with torch.no_grad():
        value = exact(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x)
    assert half.dtype == torch.bfloat16
    assert close(half.detach().double(), value, tolerance=2e-2)  # bf16 has 8 bits: 0.4 % a rounding

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = module(x)
        return y.float()

    found = gradients(autocast, x, module)
    assert {name for name in expected if not close(found[name].double(), expected[name], tolerance=6e-2)} == set()


@pytest.mark.parametrize(
    ("grid", "window"), [(2, 3), (3, 3), (5, 3), (4, 2)], ids=["one-padded", "one-full", "eight-padded", "eight-full"]
)
def test_the_encoder_is_the_padded_one(filled: Fill, grid: int, window: int) -> None:
    module, image = encoder(filled, grid=grid, window=window), volume(2 * grid)
    with torch.no_grad():
        expected = padded_encoder(module, image)
        assert expected.shape == (2, 6, grid, grid, grid)
        assert close(module(image), expected)
    assert close(module(image).detach(), expected)


@pytest.mark.parametrize(("grid", "window"), [(2, 3), (3, 3), (4, 3)])
def test_the_encoder_has_the_gradients_of_the_padded_one(filled: Fill, grid: int, window: int) -> None:
    module, image = encoder(filled, grid=grid, window=window), volume(2 * grid)
    expected = gradients(lambda x: padded_encoder(module, x), image, module)
    found = gradients(module, image, module)
    assert {name for name in expected if not close(found[name], expected[name])} == set()
    assert all(value.any() for value in expected.values())


@pytest.mark.parametrize(("grid", "window"), [(2, 3), (4, 3)])
def test_gradient_checkpointing_changes_no_bit(filled: Fill, grid: int, window: int) -> None:
    plain = encoder(filled, grid=grid, window=window)
    saving = encoder(filled, grid=grid, window=window, checkpointing=True)
    image = volume(2 * grid)
    expected, found = gradients(plain, image, plain), gradients(saving, image, saving)
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()
    with torch.no_grad():
        assert torch.equal(plain(image), saving(image))


def test_gradient_checkpointing_keeps_less() -> None:
    shape = EncoderShape(image_size=16, patch_size=2, embed_dim=16, depth=4, num_heads=2, out_channels=6)
    kept = {}
    for checkpointing in (False, True):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        module = ImageEncoder(replace(shape, global_blocks=(3,)), gradient_checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(torch.randn(1, 1, 16, 16, 16))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 4
