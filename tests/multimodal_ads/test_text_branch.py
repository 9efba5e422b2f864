"""The text branch: long texts in chunks, adapters on the text encoder, and a gate that is told facts of texts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.scorer import Item
from mlcore.training.checkpoint import load_checkpoint
from mlcore.use.exporting import export
from quartet.apps.multimodal_ads.adapters import adapter_names, add_adapters, merge_adapters
from quartet.apps.multimodal_ads.app import variants
from quartet.apps.multimodal_ads.config import AdsConfig, AdsTrainConfig, FusionConfig, LoraConfig, TextEncoderConfig
from quartet.apps.multimodal_ads.data.batches import collate
from quartet.apps.multimodal_ads.data.table import read_table
from quartet.apps.multimodal_ads.model.classifier import AdClassifier
from quartet.apps.multimodal_ads.model.fusion import GatedFusion
from quartet.apps.multimodal_ads.model.head import make_head
from quartet.apps.multimodal_ads.model.pooling import MeanPooling
from quartet.apps.multimodal_ads.task import AdTask
from quartet.apps.multimodal_ads.text.encoder import TextEncoder, load_text
from quartet.apps.multimodal_ads.text.facts import FACTS, text_facts
from quartet.apps.multimodal_ads.text.network import TextNetwork, embed
from quartet.apps.multimodal_ads.text.reading import text_inputs
from quartet.apps.multimodal_ads.text.truncation import truncation
from tests.multimodal_ads.conftest import own_rows, train, write_text_folder
from tests.multimodal_ads.test_export import FORMS, WITHOUT_THE_REPOSITORY

SHORT = ["sale now", "a b c", "", "now " * 30]  # 32 tokens with those of the ends are one chunk
LONG = ["sale " * 31, "a b c d " * 12, "now sale query " * 400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder that reads 32 tokens."""
    return write_text_folder(tmp_path_factory.mktemp("text"))


def load(folder: Path, *, chunks: int = 1, max_length: int | None = None) -> TextEncoder:
    found = load_text(TextEncoderConfig(model=str(folder), chunks=chunks, max_length=max_length))
    assert isinstance(found, TextEncoder)
    return found


# --------------------------------------------------------------------------------------------------------------- chunks


def test_chunks_change_nothing_of_short_texts_and_are_averaged_by_tokens(folder: Path) -> None:
    features = load(folder, chunks=3).encode([*SHORT, *LONG])
    plain = load(folder).encode([*SHORT, *LONG])
    assert torch.equal(features[: len(SHORT)], plain[: len(SHORT)])
    library = SentenceTransformer(str(folder), device="cpu")
    for text, found in zip(LONG, features[len(SHORT) :], strict=True):
        tokens = library.tokenizer(
            text, truncation=True, max_length=32, stride=4, return_overflowing_tokens=True, return_tensors=None
        )["input_ids"][:3]
        sizes = torch.tensor([len(chunk) for chunk in tokens])
        with torch.no_grad():
            parts = [
                library({"input_ids": torch.tensor([chunk]), "attention_mask": torch.ones(1, len(chunk))})
                for chunk in tokens
            ]
        expected = sum(
            part["sentence_embedding"][0] * share for part, share in zip(parts, sizes / sizes.sum(), strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (features - plain)[len(SHORT) :].abs().amax(1).min() > 1e-4


def test_a_text_does_not_depend_on_its_mates_and_most_chunks_bound_it(folder: Path) -> None:
    encoder, texts = load(folder, chunks=3), [*SHORT, *LONG, LONG[0], "z " * 1_000_000]
    reader, network = encoder.reader(), encoder.network()
    with torch.no_grad():
        together = embed(network, *text_inputs(reader, texts))
        for place, text in enumerate(texts):
            if text:
                torch.testing.assert_close(
                    embed(network, *text_inputs(reader, [text]))[0], together[place], rtol=0, atol=1e-6
                )
    tokens, mask, chunks = text_inputs(reader, texts)
    assert chunks.tolist()[2] == [-1, -1, -1]
    assert torch.equal(chunks[4], chunks[7])  # equal texts are read once
    assert tokens.shape == mask.shape == (7 + 1 + 1 + 2 + 2, 32)  # first ones, then those of the long texts
    torch.testing.assert_close(encoder.encode(texts)[[0, 4, 6]], together[[0, 4, 6]], rtol=0, atol=1e-6)


def test_what_chunks_do_not_read_is_told(folder: Path) -> None:
    encoder = load(folder, chunks=3)
    read = 32 + 2 * (32 - 2 - 4)  # 4 of each are of the chunk before
    assert encoder.whole == encoder.reader().whole == read
    counts = encoder.count_tokens(["a " * 60, "a " * 200])
    found = truncation(counts, encoder)
    assert (found.cut, found.lost, found.limit) == (1, 2 + 200 - read, read)
    assert encoder.fingerprint() != load(folder).fingerprint()
    assert "chunks" not in load(folder).fingerprint()  # so that what was kept before is found


# ------------------------------------------------------------------------------------------------------------- adapters


def adapted(folder: Path, *, filled: bool) -> TextNetwork:
    network = load(folder).network()
    names = add_adapters(network, rank=2, alpha=4.0, dropout=0.0, target_layers=1)
    assert names == [f"encoder.layer.1.attention.self.{one}" for one in ("query", "key", "value")]
    generator = torch.Generator().manual_seed(5)
    for name, value in network.named_parameters():
        if filled and ".lora_" in name:
            value.data.copy_(torch.randn(value.shape, generator=generator))
    return network


def test_adapters_of_a_text_encoder_start_as_nothing_train_alone_and_merge(folder: Path) -> None:
    inputs = text_inputs(load(folder).reader(), ["sale now", "a b c"])
    expected = embed(load(folder).network(), *inputs)
    assert torch.equal(embed(adapted(folder, filled=False), *inputs), expected)
    network = adapted(folder, filled=True).train()
    frozen = network.get_submodule("network.encoder.layer.0.output.dropout")
    assert not frozen.training  # a frozen part stays a fixed function
    embed(network, *inputs).square().sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    assert reached == set(adapter_names(network))
    network.eval()
    with torch.no_grad():
        own = embed(network, *inputs)
        assert (own - expected).abs().max() > 1e-3
        merge_adapters(network)
        torch.testing.assert_close(embed(network, *inputs), own, rtol=0, atol=1e-5)
    assert network.state_dict().keys() == load(folder).network().state_dict().keys()
    with pytest.raises(UserError, match=r"target_layers=3, but this text encoder has 2 layers"):
        add_adapters(load(folder).network(), rank=2, alpha=4.0, dropout=0.0, target_layers=3)


def test_settings_that_do_not_go_together() -> None:
    text = LoraConfig(enabled=True, target="text")
    for model in (None, "ngrams"):
        with pytest.raises(ValidationError, match="needs texts, and a sentence encoder"):
            AdsConfig(text_encoder=TextEncoderConfig(model=model), train=AdsTrainConfig(lora=text))
    with pytest.raises(ValidationError, match="needs texts"):
        AdsConfig(train=AdsTrainConfig(lora=text, modality="vision_only"))
    with pytest.raises(ValidationError, match=r"needs train\.finetune_layers"):
        AdsTrainConfig(lora=text, freeze_backbone=False)
    assert AdsTrainConfig(lora=text, freeze_backbone=False, finetune_layers=2).lora.on_text
    with pytest.raises(ValidationError, match="needs fusion=gated"):
        FusionConfig(name="late", text_facts=True)
    asked = AdsConfig(
        fusion=FusionConfig(text_facts=True), train=AdsTrainConfig(lora=text, lora_lr=1e-4, ablations=True)
    )
    for config in variants(asked).values():  # each is a configuration that can be given, and so be loaded again
        AdsConfig.model_validate(config.model_dump())


# ---------------------------------------------------------------------------------------------------------------- facts


def test_facts_of_texts() -> None:
    assert text_facts("") == [0.0] * FACTS
    found = text_facts("Sale: 50 % 할인!")
    assert found == pytest.approx([1, np.log10(15), np.log10(5), 6 / 14, 2 / 14, 3 / 14])


def test_the_gate_hears_facts_of_the_texts_that_are_seen_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(8, 6, width=5, facts=FACTS)
    model = AdClassifier(
        vision=None, pooling=MeanPooling(), fusion=fusion, head=make_head(5, hidden_dims=(), dropout=0.0), text_width=6
    )
    samples = [
        {"label": 1, "has_text": bool(text), "embedding": np.ones(6, np.float32), "facts": text_facts(text)}
        for text in ("sale now", "50 %%%", "sale now", "")
    ]
    batch = {**collate([*samples[:2], {**samples[2], "hide_text": True}, samples[3]]), "pooled": torch.ones(4, 8)}
    gates = model(batch).gate
    assert (gates[0] - gates[1]).abs().max() > 1e-3
    assert torch.equal(gates[2], gates[3])  # hidden as if there was none
    AdTask(model=model).training_step(model, batch).loss_sum.backward()
    assert fusion.gate.weight.grad is not None
    assert fusion.gate.weight.grad[:, -FACTS:].abs().sum(0).min() > 0
    with torch.no_grad():
        fusion.gate.weight[:, -FACTS:] = 0
        plain = GatedFusion(8, 6, width=5)
        state = fusion.state_dict()
        plain.load_state_dict({**state, "gate.weight": state["gate.weight"][:, :-FACTS]})
        vectors = batch["pooled"], batch["text"]
        assert torch.equal(plain(*vectors)[0], fusion(*vectors, batch["text_facts"])[0])


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def settings(folder: Path, ads: Path, backbone: list[str]) -> list[str]:
    text = [f"text_encoder.model={folder}", "text_encoder.max_length=8", "text_encoder.chunks=3"]
    lora = ["train.lora.enabled=true", "train.lora.target=both", "train.lora.rank=2", "train.lora.target_layers=2"]
    more = ["fusion.text_facts=true", "--lora_lr", "3e-3", "scheduler.max_steps=8", "--baseline", "none"]
    return [*backbone, *text, *lora, *more, "--base_dir", str(ads)]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps an epoch, with adapters on both encoders, chunks and facts."""
    return train(tmp_path_factory.mktemp("whole") / "run", *settings)


def test_adapters_of_both_encoders_train(whole: Path) -> None:
    state = load_checkpoint(whole / "checkpoint_best.ckpt")["model"]
    for name in ("vision", "text"):
        inside = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        assert len(inside) == 2 * 3 * 2  # layers, projections, A and B
        assert all(".lora_" in key for key in inside)
        assert any(value.any() for key, value in inside.items() if ".lora_B" in key)
    assert "texts: computing features" not in (whole / "train.log").read_text("utf-8")  # they are not frozen


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_end(whole: Path, settings: list[str], tmp_path: Path) -> None:
    part = train(tmp_path / "part", *settings, "--max_steps", "3")
    train(part, *settings)
    one, other = (load_checkpoint(f / "checkpoints" / "latest_model.pth")["model"] for f in (part, whole))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
def test_every_form_of_an_export_reads_texts_as_the_run_does(whole: Path, ads: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    export(load_run(whole, device="cpu"), out, ["pt2", "onnx"])
    rows, own = read_table(ads / "test.csv", base_dir=None), own_rows(whole)
    items = [Item(row.origin, row.image, values=(("text", row.text),)) for row in rows]
    for form in FORMS:
        found = load_run(out, device="cpu", network=form)(items, batch_size=7)
        assert [one.probability for one in found] == pytest.approx([row["probability"] for row in own], abs=1e-5), form
        assert [one.gate for one in found] == pytest.approx([row["gate"] for row in own], abs=1e-5)
    picture = str(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    texts = ["sale now a b c d", "a 1 % b c, sale now: " * 9, "", "e\u0301 é now"]
    command = [
        sys.executable,
        "-I",
        "-c",
        WITHOUT_THE_REPOSITORY,
        *(given for text in texts for given in (picture, text)),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = load_run(whole, device="cpu")([Item("", Path(picture), values=(("text", text),)) for text in texts])
    shown = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert shown == pytest.approx([one.probability for one in expected], abs=2e-6)
    assert len({f"{one:.6f}" for one in shown}) == len(texts)
