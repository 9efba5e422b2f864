"""What a Perceiver must and must not depend on, and its parts' wiring."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model import (
    SIZES,
    PerceiverDecoder,
    PerceiverEncoder,
    PerceiverIO,
    PerceiverModel,
    PerceiverOptions,
    create_perceiver_model,
)
from quartet.apps.perceiver.model.positions import PositionEncoding, PositionKind

CHANNELS, CLASSES = 3, 5
TINY = {"d_model": 16, "num_heads": 4, "num_cross_attention_layers": 2, "num_self_attention_layers": 1}


def tiny(num_latents: int = 6, **options: object) -> PerceiverModel:
    torch.manual_seed(0)
    return PerceiverModel(
        CHANNELS, num_latents=num_latents, num_classes=CLASSES, options=PerceiverOptions(**options), **TINY
    ).double()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KINDS = ["fourier", "learned", "none", "sinusoidal"]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    model = tiny(position=kind)
    short, long = tokens(1, 4), tokens(1, 9, seed=2)
    alone = torch.cat([model(short), model(long)])
    for junk in (0.0, 1e30, float("nan"), float("inf")):
        for total in (9, 14):
            batch = torch.full((2, total, CHANNELS), junk, dtype=torch.float64)
            batch[0, :4], batch[1, :9] = short[0], long[0]
            mask = torch.arange(total)[None] < torch.tensor([[4], [9]])
            torch.testing.assert_close(model(batch, mask), alone, rtol=0, atol=1e-12)


def test_padding_gets_no_gradient() -> None:
    model, x = tiny(), tokens(2, 6).requires_grad_()
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    model(x, mask).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert x.grad[mask].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64, torch.float64])
def test_masks_of_any_dtype_mean_the_same(dtype: torch.dtype) -> None:
    model, x = tiny(), tokens(2, 6)
    mask = torch.arange(6)[None] < torch.tensor([[4], [6]])
    assert torch.equal(model(x, mask.to(dtype)), model(x, mask))


def test_a_mask_of_ones_is_no_mask() -> None:
    model, x = tiny(), tokens(2, 6)
    assert torch.equal(model(x, torch.ones(2, 6)), model(x))


@pytest.mark.parametrize("strange", [float("-inf"), -1e9, 0.5, 2.0, float("nan")])
def test_masks_of_other_numbers_are_refused(strange: float) -> None:
    mask = torch.zeros(2, 6)
    mask[0, 4] = strange
    with pytest.raises(UserError, match="a mask must be 1 where a token is real and 0 where it is not; found"):
        tiny()(tokens(2, 6), mask)


def test_masks_of_numbers_are_refused_where_they_would_be_added() -> None:
    block = tiny().encoder.cross_blocks[0]
    with pytest.raises(UserError, match=r"an attention mask must be boolean.*got torch.float32"):
        block(torch.zeros(1, 4, 16), torch.zeros(1, 6, CHANNELS + 32), torch.ones(1, 6))


@pytest.mark.parametrize("kind", ["fourier", "sinusoidal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_and_statistics_of_a_half_precision_model_are_exact(kind: str, dtype: torch.dtype) -> None:
    full = tiny(position=kind).float()
    full.encoder.set_input_statistics([300.0, -2e5, 0.0], [1.0, 10.0, 1e-3])
    half = deepcopy(full).to(dtype)
    assert half.head.project.weight.dtype == dtype
    wide, narrow = (
        m.encoder.positions(torch.zeros(1, 1000, CHANNELS, dtype=d)) for m, d in ((full, torch.float32), (half, dtype))
    )
    assert torch.equal(narrow, wide.to(dtype))
    x = tokens(2, 700).float() * torch.tensor([1.0, 10.0, 1e-3]) + torch.tensor([300.0, -2e5, 0.0])
    torch.testing.assert_close(half(x).float(), full(x), rtol=0.05, atol=0.05)
    assert torch.equal(half.float().encoder.input_mean, full.encoder.input_mean)


def test_a_sample_of_padding_only_is_named() -> None:
    mask = torch.ones(3, 6)
    mask[1] = 0
    with pytest.raises(UserError, match=r"samples \[1\] of the batch are padding only"):
        tiny()(tokens(3, 6), mask)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(2, 6), None, "expected tokens of shape"),
        (torch.zeros(2, 6, CHANNELS + 1), None, rf"\[batch, length, {CHANNELS}\]"),
        (torch.zeros(2, 0, CHANNELS), None, "length 0"),
        (torch.zeros(2, 6, CHANNELS), torch.ones(2, 5), r"mask of shape \[2, 6\], got \[2, 5\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(x: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny()(x.double(), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_seen_exactly_when_positions_are(kind: str) -> None:
    model, x = tiny(position=kind), tokens(2, 7)
    unchanged = torch.allclose(model(x), model(x.flip(1)), rtol=0, atol=1e-10)
    assert unchanged == (kind == "none")


def test_order_is_seen_by_default() -> None:
    torch.manual_seed(0)
    model = create_perceiver_model(input_dim=4, num_classes=3, model_size="small")
    x = torch.randn(1, 10, 4)
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-4)


@pytest.mark.parametrize("kind", ["fourier", "learned"])
def test_a_sequence_longer_than_positions_reach_is_named(kind: str) -> None:
    with pytest.raises(UserError, match="9 tokens is longer than max_seq_len=8"):
        tiny(position=kind, max_seq_len=8)(tokens(1, 9))


@pytest.mark.parametrize("pooling", ["mean", "query"])
def test_gradient_checkpointing_gives_the_same_numbers(pooling: str) -> None:
    x, mask = tokens(2, 7), torch.arange(7)[None] < torch.tensor([[5], [7]])
    results = []
    for switch in (False, True):
        model = tiny(pooling=pooling, gradient_checkpointing=switch, dropout=0.3)
        torch.manual_seed(3)  # the same elements are dropped, also when a block runs a second time
        loss = model(x, mask).square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_shared_weights_are_the_papers_and_stored_once() -> None:
    own, shared = tiny(), tiny(share_weights=True)
    assert len(own.encoder.latent_transformers) == 2
    assert len(shared.encoder.latent_transformers) == 1
    assert len(shared.encoder.cross_blocks) == 2  # the first cross-attention keeps its own
    deeper = PerceiverModel(
        CHANNELS,
        num_latents=6,
        num_classes=CLASSES,
        options=PerceiverOptions(share_weights=True),
        **{**TINY, "num_cross_attention_layers": 5},
    )
    assert count(deeper) == count(shared)
    assert len({p.data_ptr() for p in shared.state_dict().values()}) == len(shared.state_dict())


def test_input_statistics_standardise_and_are_saved() -> None:
    plain, model, x = tiny(), tiny(), tokens(2, 7)
    mean, std = [1.0, -2.0, 300.0], [2.0, 0.5, 10.0]
    model.encoder.set_input_statistics(mean, std)
    raw = x * torch.tensor(std, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)
    torch.testing.assert_close(model(raw), plain(x), rtol=0, atol=1e-12)
    restored = tiny()
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(raw), model(raw))


@pytest.mark.parametrize("std", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]])
def test_statistics_that_cannot_be_are_refused(std: list[float]) -> None:
    with pytest.raises(UserError, match="above 0 of 3 channels"):
        tiny().encoder.set_input_statistics([0.0] * len(std), std)


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_follow_from_the_table(size: str) -> None:
    model = create_perceiver_model(input_dim=32, num_classes=10, model_size=size)  # type: ignore[arg-type]
    s = SIZES[size]
    d, width = s.d_model, 32 + 32  # tokens and their position features
    perceptron = 2 * (d * d + d)
    attention = 2 * (d * d + d) + (2 * d * d + 2 * d)
    cross = 2 * (d * d + d) + (2 * d * width + 2 * d)
    repeat = cross + perceptron + s.num_self_attention_layers * (attention + perceptron)
    assert count(model) == s.num_latents * d + s.num_cross_attention_layers * repeat + d * 10 + 10


def test_sizes_are_those_promised() -> None:
    assert {
        name: (
            s.d_model,
            s.num_heads,
            s.num_latents,
            s.num_cross_attention_layers,
            s.num_self_attention_layers,
        )
        for name, s in SIZES.items()
    } == {"small": (256, 4, 128, 1, 3), "base": (512, 8, 256, 1, 6), "large": (768, 12, 512, 2, 8)}


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(UserError, match="small, base, large; got 'huge'"):
        create_perceiver_model(8, 2, "huge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide d_model=16"),
        ({"num_latents": 0}, "num_latents must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"options": PerceiverOptions(position="spiral")}, "position must be one of"),  # type: ignore[arg-type]
        ({"options": PerceiverOptions(pooling="max")}, "pooling must be mean or query"),  # type: ignore[arg-type]
        ({"options": PerceiverOptions(position_channels=7)}, "even number"),
        ({"input_dim": 1, "options": PerceiverOptions(position="none")}, "one channel without position"),
    ],
)
def test_a_model_that_cannot_be_is_named(change: dict[str, object], message: str) -> None:
    values = {"input_dim": CHANNELS, "num_latents": 6, "num_classes": CLASSES, **TINY, **change}
    with pytest.raises(UserError, match=message):
        PerceiverModel(**values)  # type: ignore[arg-type]


def test_perceiver_io_decodes_any_number_of_outputs() -> None:
    torch.manual_seed(0)
    encoder = PerceiverEncoder(CHANNELS, num_latents=6, **TINY)
    decoder = PerceiverDecoder(16, num_heads=4, num_outputs=2, num_queries=9)
    model = PerceiverIO(encoder, decoder=decoder).double()
    x = tokens(2, 7)
    assert model(x).shape == (2, 9, 2)
    queries = torch.randn(4, 16, dtype=torch.float64)
    together = model(x, queries=queries)
    assert together.shape == (2, 4, 2)
    # Queries do not see each other or the other samples.
    torch.testing.assert_close(model(x, queries=queries[2:3]), together[:, 2:3], rtol=0, atol=1e-12)
    own = torch.stack([queries, queries.flip(0)])
    torch.testing.assert_close(model(x, queries=own)[1], together[1].flip(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 15), (3, 4, 16), (16,)])
def test_queries_of_a_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    decoder = PerceiverDecoder(16, num_heads=4, num_outputs=2)
    with pytest.raises(UserError, match="expected queries of shape"):
        decoder(torch.zeros(2, 6, 16), torch.zeros(shape))


def test_a_decoder_without_queries_says_so() -> None:
    with pytest.raises(UserError, match="must be given some"):
        PerceiverDecoder(16, num_heads=4, num_outputs=2, num_queries=0)(torch.zeros(2, 6, 16))


@pytest.mark.parametrize("pooling", ["mean", "query"])
def test_bfloat16_autocast_is_finite_and_near(pooling: str) -> None:
    model = tiny(pooling=pooling).float()
    x, mask = tokens(2, 7).float(), torch.arange(7)[None] < torch.tensor([[5], [7]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x, mask)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits.float(), model(x, mask), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("options", [PerceiverOptions(), PerceiverOptions(pooling="query", position="fourier")])
@pytest.mark.parametrize("masked", [True, False])
def test_export_with_any_batch_and_length(options: PerceiverOptions, masked: bool) -> None:
    options = replace(options, max_seq_len=64)
    model = PerceiverModel(CHANNELS, num_latents=6, num_classes=CLASSES, options=options, **TINY).eval()
    batch, length = torch.export.Dim("batch", min=1, max=1024), torch.export.Dim("length", min=1, max=64)
    mask = (torch.ones(3, 8, dtype=torch.bool),) if masked else ()
    inputs = (torch.zeros(3, 8, CHANNELS), *mask)
    program = torch.export.export(model, inputs, dynamic_shapes=({0: batch, 1: length},) * len(inputs))
    for size, total in ((1, 1), (5, 33)):
        x = tokens(size, total).float()
        seen = (torch.arange(total)[None] < torch.arange(1, size + 1)[:, None],) if masked else ()
        torch.testing.assert_close(program.module()(x, *seen), model(x, *seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fourier", "learned", "sinusoidal"])
def test_a_lone_value_keeps_its_size_beside_its_position(kind: PositionKind) -> None:
    torch.manual_seed(0)
    values = torch.tensor([0.5, 2.0])[:, None, None].expand(2, 6, 1)
    placed = PositionEncoding(kind, max_seq_len=6)(values)
    small, large = functional.layer_norm(placed, placed.shape[2:])[..., 0]
    assert (large > 2 * small).all()
