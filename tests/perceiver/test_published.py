"""Parity with transformers' Perceiver: its encoders as ours and ours as its, with inputs of texts, pictures, tokens."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from quartet.apps.perceiver.build_raw import build
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.raw_batches import RawCollate
from quartet.apps.perceiver.model import PerceiverEncoder, PerceiverOptions, from_transformers, to_transformers
from tests.perceiver.conftest import Script
from tests.perceiver.published import write_published

library: Any = pytest.importorskip("transformers.models.perceiver.modeling_perceiver")
transformers: Any = importlib.import_module("transformers")

SHAPE = {
    "num_latents": 6,
    "d_latents": 16,
    "d_model": 24,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 2,
    "max_position_embeddings": 40,
    "image_size": 4,
    "num_labels": 3,
}
TEXTS = (b"a short one", b"\xea\xb0\x80 longer than that one")


def theirs(kind: str, **changes: Any) -> Any:
    """A model of theirs whose norms do something, too."""
    torch.manual_seed(0)
    model = getattr(library, kind)(transformers.PerceiverConfig(**{**SHAPE, **changes})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def raw(texts: tuple[bytes, ...] = TEXTS) -> dict[str, Any]:
    samples = [{"input": {"text": np.frombuffer(text, dtype=np.uint8)}, "label": 0} for text in texts]
    return RawCollate(modalities=[Modality(name="text", kind="text", patch=1)])(samples)


def ids(batch: dict[str, Any]) -> Tensor:
    """As their tokenizer counts bytes, 0 where padded."""
    text: Tensor = batch["input"]["text"][..., 0].long()
    return torch.where(batch["mask"], text + 6, 0)


def close(ours: Tensor, its: Tensor) -> None:
    assert float(its.detach().std()) > 0.1
    torch.testing.assert_close(ours, its, rtol=0, atol=1e-10)


WIDTHS = ({}, {"qk_channels": 8, "v_channels": 16}, {"self_attention_widening_factor": 3, "num_blocks": 1})


@pytest.mark.parametrize("widths", WIDTHS)
@torch.no_grad()
def test_encoders_of_texts_are_the_same_both_ways(widths: dict[str, Any]) -> None:
    model, batch = theirs("PerceiverForMaskedLM", **widths), raw()
    its = model.perceiver(inputs=ids(batch), attention_mask=batch["mask"]).last_hidden_state
    encoder = from_transformers(model.state_dict(), model.config.to_dict())
    close(encoder(batch["input"], batch["mask"]), its)
    weights, config = to_transformers(encoder)
    settings = transformers.PerceiverConfig(**config)
    back = library.PerceiverModel(settings, input_preprocessor=library.PerceiverTextPreprocessor(settings)).double()
    back.load_state_dict(weights)
    close(back.eval()(inputs=ids(batch), attention_mask=batch["mask"]).last_hidden_state, its)


@torch.no_grad()
def test_encoders_of_pixels_with_learned_positions_are_the_same_both_ways() -> None:
    model = theirs("PerceiverForImageClassificationLearned", d_model=512)
    pictures = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    its = model.perceiver(inputs=pictures).last_hidden_state
    encoder = from_transformers(model.state_dict(), model.config.to_dict())
    pixels = pictures.flatten(2).transpose(1, 2)
    close(encoder(pixels), its)
    encoder.set_input_statistics([0.5, -1.0, 2.0], [2.0, 0.5, 3.0])  # becomes a part of the convolution
    weights, config = to_transformers(encoder)
    settings = transformers.PerceiverConfig(**config)
    preprocessor = library.PerceiverImagePreprocessor(
        settings,
        prep_type="conv1x1",
        spatial_downsample=1,
        out_channels=256,
        position_encoding_type="trainable",
        project_pos_dim=256,
        trainable_position_encoding_kwargs={"num_channels": 256, "index_dims": 16},
    )
    back = library.PerceiverModel(settings, input_preprocessor=preprocessor).double().eval()
    back.load_state_dict(weights)
    torch.testing.assert_close(back(inputs=pictures).last_hidden_state, encoder(pixels), rtol=0, atol=1e-7)


@torch.no_grad()
def test_of_other_inputs_the_encoder_is_the_same_from_the_tokens_on() -> None:
    model = theirs("PerceiverForImageClassificationFourier", d_model=261, num_cross_attention_heads=1)
    pictures = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    tokens, _, _ = model.perceiver.input_preprocessor(pictures)
    encoder = from_transformers(model.state_dict(), model.config.to_dict())
    close(encoder(tokens), model.perceiver(inputs=pictures).last_hidden_state)


@torch.no_grad()
def test_an_encoder_of_ours_runs_there_with_the_tokens_that_it_reads() -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "num_heads": 4, "num_cross_attention_layers": 1, "num_latents": 5}
    encoder = PerceiverEncoder(3, num_self_attention_layers=2, **shape, options=PerceiverOptions(share_weights=True))
    x, mask = torch.randn(2, 9, 3), torch.arange(9) < torch.tensor([[9], [4]])
    weights, config = to_transformers(encoder)
    model = library.PerceiverModel(transformers.PerceiverConfig(**config)).eval()
    model.load_state_dict(weights)
    tokens, mask = encoder.tokens(x, mask)
    torch.testing.assert_close(
        model(inputs=tokens, attention_mask=mask).last_hidden_state, encoder(x, mask), rtol=0, atol=1e-5
    )
    with pytest.raises(UserError, match="reads its input once, this encoder 2 times"):
        to_transformers(PerceiverEncoder(3, num_self_attention_layers=2, **{**shape, "num_cross_attention_layers": 2}))


def test_what_cannot_be_expressed_is_refused() -> None:
    model = theirs("PerceiverForSequenceClassification")
    weights, config = model.state_dict(), model.config.to_dict()
    with pytest.raises(UserError, match="use_query_residual=False"):
        from_transformers(weights, {**config, "use_query_residual": False})
    with pytest.raises(UserError, match="num_blocks='two'"):
        from_transformers(weights, {**config, "num_blocks": "two"})
    with pytest.raises(UserError, match=r"embeddings\.latents is missing"):
        from_transformers({}, config)


def test_widths_of_attention_are_what_heads_divide() -> None:
    with pytest.raises(UserError, match="num_heads=4 does not divide qk_channels=6"):
        PerceiverEncoder(
            3,
            d_model=16,
            num_heads=4,
            num_cross_attention_layers=1,
            num_self_attention_layers=1,
            num_latents=2,
            options=PerceiverOptions(self_widths={"qk_channels": 6}),
        )


# ------------------------------------------------------------------------------------------------ from the command line


@pytest.fixture
def texts(script: Script) -> list[str]:
    """What trains on four texts of up to 9 bytes, of two classes; in the folder `script` runs in."""
    for label in ("cat", "dog"):
        for number in range(4):
            path = Path("texts") / label / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"a {label} 가"[: 5 + number])
    return ["--dataset", "text", "--data_dir", "texts", "--init_from", "folder", "--output_dir", "run"]


def test_a_folder_begins_a_model_of_texts(texts: list[str]) -> None:
    encoder = write_published(Path("folder"))
    config = PerceiverConfig.model_validate(
        {"data": {"dataset": "text", "data_dir": Path("texts")}, "task": {"init_from": "folder"}}
    )
    task = build(config, World()).task
    model: Any = task.model
    batch = raw((b"a dog", b"\xea\xb0\x80 cat"))
    torch.testing.assert_close(
        model.encoder(batch["input"], batch["mask"]), encoder(batch["input"], batch["mask"]), rtol=0, atol=1e-6
    )
    assert task.metadata["model"]["options"]["latent_repeats"] == 2


def test_a_run_that_began_with_a_folder_needs_it_no_more(texts: list[str], script: Script, tiny: list[str]) -> None:
    write_published(Path("folder"))
    ended = script("train", *tiny, *texts)
    assert ended.code == 0, ended.err
    Path("folder/config.json").unlink()
    predicted = script("predict", "--model_path", "run", "texts/cat/0.txt", "--output", "table.csv")
    assert predicted.code == 0, predicted.err


def test_folders_that_cannot_be_a_start_are_named(texts: list[str], script: Script, tiny: list[str]) -> None:
    write_published(Path("folder"), longest=6)
    long = script("train", *tiny, *texts)
    assert long.code == 2
    assert long.err.startswith("error: folder: knows 6 positions, the data has sequences of")
    patched = script("train", *tiny, *texts, "--max_seq_len", "6", "--on_too_long", "truncate", "--text_patch", "2")
    assert patched.err.startswith("error: folder: from the command line a published Perceiver of texts begins a model")
    (Path("folder") / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "folder: a model of the type bert, not a perceiver" in script("train", *tiny, *texts).err
    (Path("folder") / "config.json").write_text(json.dumps({"model_type": "perceiver", "num_self_attention_heads": -1}))
    assert "num_self_attention_heads=-1: expected a whole number up to 1024" in script("train", *tiny, *texts).err
    (Path("folder") / "model.safetensors").write_bytes(b"x" * 40)
    assert "model.safetensors: damaged or not a safetensors file" in script("train", *tiny, *texts).err
