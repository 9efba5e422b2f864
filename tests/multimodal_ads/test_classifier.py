"""Pooling, fusion and the classifier: identities, and what its state dict holds."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import CheckpointError, load_model_weights
from quartet.apps.multimodal_ads.model.classifier import AdClassifier, given
from quartet.apps.multimodal_ads.model.fusion import ConcatFusion, GatedFusion, LateFusion, Single
from quartet.apps.multimodal_ads.model.head import make_head
from quartet.apps.multimodal_ads.model.pooling import AttentionPooling, MeanPooling, SummaryPooling
from quartet.apps.multimodal_ads.task import AdTask, Objective
from quartet.apps.multimodal_ads.vision.interface import Tokens


def tokens(batch: int = 3, length: int = 5, width: int = 8) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.tensor([[5], [3], [1]])[:batch]
    return Tokens(torch.randn(batch, length, width, generator=generator), mask, None)


@pytest.mark.parametrize("pooling", [MeanPooling(), AttentionPooling(8, num_heads=2)])
def test_masked_tokens_have_no_say(pooling: nn.Module) -> None:
    given = tokens()
    assert given.mask is not None
    noisy = given._replace(values=torch.where(given.mask.unsqueeze(-1), given.values, 1e3))
    torch.testing.assert_close(pooling(noisy), pooling(given))
    longer = Tokens(functional.pad(given.values, (0, 0, 0, 4), value=7.0), functional.pad(given.mask, (0, 4)), None)
    torch.testing.assert_close(pooling(longer), pooling(given))
    alone = Tokens(given.values[1:2, :3], None, None)  # the second sample has three tokens
    torch.testing.assert_close(pooling(alone), pooling(given)[1:2])


def test_attention_pooling_is_attention_with_one_query_for_each_head() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(8, num_heads=2).double()
    given = tokens()
    assert given.mask is not None
    values = pooling.norm(given.values.double())
    heads = functional.scaled_dot_product_attention(
        pooling.queries.view(1, 2, 1, 8).expand(3, -1, -1, -1),
        values.unsqueeze(1).expand(-1, 2, -1, -1),
        torch.einsum("btd,hde->bhte", values, pooling.value),  # values projected before the mean, not after
        attn_mask=given.mask[:, None, None],
        scale=1.0,
    )
    expected = pooling.output(heads.squeeze(2).flatten(1))
    torch.testing.assert_close(pooling(given._replace(values=given.values.double())), expected)


def test_pooling_that_cannot_be_says_what_can() -> None:
    with pytest.raises(UserError, match="pooling=mean"):
        SummaryPooling(has_summary=False)
    with pytest.raises(UserError, match="num_heads=3"):
        AttentionPooling(8, num_heads=3)


def test_gmu_is_the_papers_equation() -> None:
    torch.manual_seed(1)
    fusion = GatedFusion(4, 6, width=5)
    vision, text = torch.randn(2, 4), torch.randn(2, 6)
    fused, gate = fusion(vision, text)
    # layer norm, but for the 1e-5 that it adds to variances
    vision, text = ((x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True) for x in (vision, text))
    h_v = torch.tanh(vision @ fusion.vision.weight.T + fusion.vision.bias)
    h_t = torch.tanh(text @ fusion.text.weight.T + fusion.text.bias)
    z = torch.sigmoid(torch.cat([vision, text], 1) @ fusion.gate.weight.T + fusion.gate.bias)
    torch.testing.assert_close(fused, z * h_v + (1 - z) * h_t, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gate, z, rtol=1e-4, atol=1e-4)


def test_concat_and_single_are_of_unit_length() -> None:
    fused, gate = ConcatFusion(4, 6)(torch.randn(2, 4) * 9, torch.randn(2, 6))
    assert gate is None
    torch.testing.assert_close(fused.norm(dim=1), torch.full((2,), 2.0**0.5))
    for projection in (None, 3):
        single = Single(4, projection_dim=projection)
        vector = single(torch.randn(2, 4) * 9)
        assert vector.shape[1] == single.width == (projection or 4)
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("late", [True, False])
def test_each_modality_learns_from_a_loss_of_its_own(late: bool) -> None:
    torch.manual_seed(0)
    fusion = LateFusion() if late else ConcatFusion(8, 6)
    model = AdClassifier(
        vision=None,
        pooling=MeanPooling(),
        fusion=fusion,
        head=nn.Identity() if isinstance(fusion, LateFusion) else make_head(14, hidden_dims=(), dropout=0.0),
        branches=nn.ModuleList([make_head(width, hidden_dims=(), dropout=0.0) for width in (8, 6)]),
        text_width=6,
    )
    made = {"pooled": torch.randn(3, 8), "text": torch.randn(3, 6), "has_text": torch.tensor([True, True, False])}
    made["label"] = torch.tensor([1, 0, 1])
    found = model(made)
    picture, text = given(found.branches).unbind(1)
    rows = AdTask(model=model).evaluation_step(model, made)
    assert torch.equal(rows["picture_logit"], picture)
    assert torch.equal(rows["text_logit"], text)
    if isinstance(fusion, LateFusion):
        torch.testing.assert_close(found.logits, picture + text)
        with torch.no_grad():
            fusion.weights.copy_(torch.tensor([2.0, -1.0]))
            fusion.bias.fill_(0.5)
        torch.testing.assert_close(model(made).logits, 2 * picture - text + 0.5)
    plain, both = (
        AdTask(model=model, objective=Objective(loss_type="bce", modality_loss=weight)) for weight in (0.0, 3.0)
    )
    extra = both.training_step(model, made).loss_sum - plain.training_step(model, made).loss_sum
    loss = nn.BCEWithLogitsLoss(reduction="sum")
    torch.testing.assert_close(extra, 3 * sum(loss(one, made["label"].float()) for one in (picture, text)))
    extra.backward()
    for head in given(model.branches):
        assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())


class Backbone(nn.Module):
    """A stand-in with a frozen and a trained layer and a frozen batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Linear(3, 8).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(8).requires_grad_(requires_grad=False)
        self.top = nn.Linear(8, 8)

    def forward(self, pixels: Mapping[str, Tensor]) -> Tokens:
        return Tokens(self.top(self.norm(self.bottom(pixels["pixel_values"]))).unsqueeze(1), None, None)


def classifier(imagine: nn.Module | None = None) -> AdClassifier:
    return AdClassifier(
        vision=Backbone(),  # type: ignore[arg-type]
        pooling=MeanPooling(),
        fusion=GatedFusion(8, 6, width=5),
        head=make_head(5, hidden_dims=(4,), dropout=0.0),
        text_width=6,
        imagine=imagine,
    ).eval()


def test_the_second_loss_teaches_the_picture_what_its_text_means() -> None:
    model = classifier(imagine=nn.Linear(8, 6)).train()
    made = {**batch(), "label": torch.tensor([0, 1]), "real_text": torch.tensor([True, False])}
    plain, aligned = AdTask(model=model), AdTask(model=model, objective=Objective(align_weight=2.0))
    text = made["text"]
    assert isinstance(text, Tensor)
    vector = given(model.vision)(batch()["pixels"]).values.mean(1)
    cosine = functional.cosine_similarity(given(model.imagine)(vector), text, dim=-1)
    extra = aligned.training_step(model, made).loss_sum - plain.training_step(model, made).loss_sum
    torch.testing.assert_close(extra, 2 * (1 - cosine[0]))
    extra.backward()
    top = given(model.vision).get_parameter("top.weight")
    assert top.grad is not None
    assert top.grad.any()
    assert model.eval()(made).imagined is None


def batch(has_text: bool = True) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixels": {"pixel_values": torch.randn(2, 3, generator=generator)},
        "text": torch.randn(2, 6, generator=generator),
        "has_text": torch.full((2,), has_text),
    }


def test_the_state_dict_holds_what_trains_and_loads_without_the_rest() -> None:
    torch.manual_seed(0)
    one = classifier()
    keys = set(one.state_dict())
    assert {"vision.top.weight", "vision.top.bias", "no_text", "head.1.weight"} <= keys
    assert not any(key.startswith(("vision.bottom", "vision.norm")) for key in keys)
    other = classifier()
    assert other.vision is not None
    other.vision.load_state_dict({**other.vision.state_dict(), **_frozen(one)})
    load_model_weights(other, one.state_dict(), source="test")
    assert torch.equal(other(batch()).logits, one(batch()).logits)


def _frozen(model: AdClassifier) -> dict[str, Tensor]:
    assert model.vision is not None
    return {k: v for k, v in model.vision.state_dict().items() if not k.startswith("top")}


def test_a_missing_trained_weight_is_never_silently_random() -> None:
    weights = dict(classifier().state_dict())
    del weights["vision.top.weight"]
    with pytest.raises(CheckpointError, match=r"vision\.top\.weight"):
        load_model_weights(classifier(), weights, source="test")
    with pytest.raises(RuntimeError, match=r"head\.1\.bias"):
        classifier().load_state_dict({k: v for k, v in classifier().state_dict().items() if k != "head.1.bias"})


def test_features_in_place_of_pixels_give_the_same_logits() -> None:
    model = classifier()
    assert model.vision is not None
    given = batch()
    seen = model.vision(given["pixels"])
    for known in ({"tokens": seen}, {"pooled": seen.values.mean(1)}):
        rest = {key: value for key, value in given.items() if key != "pixels"}
        assert torch.equal(model({**rest, **known}).logits, model(given).logits)


def test_the_model_is_told_that_the_text_is_missing() -> None:
    model = classifier()
    with torch.no_grad():
        assert model.no_text is not None
        model.no_text.fill_(2.0)
        without, other = batch(has_text=False), batch(has_text=False)
        other["text"] = torch.randn(2, 6)
        assert torch.equal(model(without).logits, model(other).logits)
        assert not torch.equal(model(without).logits, model(batch()).logits)


def of_missing_texts(kind: str) -> tuple[AdClassifier, dict[str, Tensor]]:
    """A classifier, and a batch of which just the ads lack a text."""
    torch.manual_seed(0)
    fusion = {
        "single": lambda: Single(6, projection_dim=None),
        "projected": lambda: Single(6, projection_dim=5),
        "concat": lambda: ConcatFusion(8, 6),
        "gated": lambda: GatedFusion(8, 6, width=5),
    }[kind]()
    model = AdClassifier(
        vision=None,
        pooling=None if isinstance(fusion, Single) else MeanPooling(),
        fusion=fusion,
        head=make_head(fusion.width, hidden_dims=(8,), dropout=0.0),
        text_width=6,
    )
    label = torch.arange(32) % 2
    texts = functional.normalize(torch.randn(32, 6), dim=-1)
    has_text = label == 0
    return model, {
        "pooled": torch.randn(32, 8), "text": texts, "has_text": has_text, "real_text": has_text, "label": label,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["single", "projected", "concat", "gated"])
def test_a_missing_text_is_learned_without_clipping(kind: str) -> None:
    model, made = of_missing_texts(kind)
    task = AdTask(model=model, objective=Objective(loss_type="bce"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    norms = []
    for _ in range(300):
        optimizer.zero_grad()
        step = task.training_step(model, made)
        (step.loss_sum / 32).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
        optimizer.step()
    assert max(norms) < 10
    assert step.loss_sum / 32 < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_what_stands_in_for_a_missing_text_follows_from_the_seed(seed: int) -> None:
    vectors = []
    for _ in range(2):
        torch.manual_seed(seed)
        vectors.append(given(classifier().no_text))
    assert torch.equal(*vectors)
    torch.testing.assert_close(vectors[0].norm(), torch.tensor(1.0))


def test_logits_are_in_full_precision_whatever_the_backbone_computes_in() -> None:
    model = classifier()
    with torch.autocast("cpu", torch.bfloat16):
        assert given(model.vision)(batch()["pixels"]).values.dtype == torch.bfloat16
        logits = model(batch()).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model.head(model.fusion(*vectors(model))[0]).squeeze(-1))


def vectors(model: AdClassifier) -> tuple[Tensor, Tensor]:
    """What the fusion gets of `batch()` from a backbone in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        pooled = given(model.vision)(batch()["pixels"]).values.mean(1)
    text = batch()["text"]
    assert isinstance(text, Tensor)
    return pooled.float(), text


def test_buffers_of_modules_without_parameters_follow_the_module_that_holds_them() -> None:
    model = classifier()
    model.vision = nn.Sequential(
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)),
    )
    model.vision[0].requires_grad_(requires_grad=False)
    kept = {key for key in model.state_dict() if key.startswith("vision.")}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert kept == {"vision.1.0.weight", "vision.1.0.bias", *(f"vision.1.1.{name}" for name in statistics)}
    model.vision.requires_grad_(requires_grad=True)
    assert "vision.0.1.running_mean" in model.state_dict()
