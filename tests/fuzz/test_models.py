"""Folders of published models, and what the apps themselves keep of models."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTForImageClassification, ViTImageProcessor

from mlcore.remote.hub import read_json, read_weights, weight_files
from mlcore.run.exported import digest_of, read_about
from mlcore.training.checkpoint import save_checkpoint
from quartet.apps.multimodal_ads.config import TextEncoderConfig, VisionEncoderConfig
from quartet.apps.multimodal_ads.text.encoder import load_text
from quartet.apps.multimodal_ads.text.safety import check_folder
from quartet.apps.multimodal_ads.vision.timm_models import _folder_metadata
from quartet.apps.multimodal_ads.vision.transformer_models import load_transformer
from quartet.apps.perceiver.fine_tuning import read_start
from quartet.apps.sam_med3d_ich.answering import demo_language, load_language
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape, ImageEncoder
from quartet.apps.sam_med3d_ich.vision_tower import QFormerSizes, _read_qformer, read_encoder
from tests.fuzz.cases import Parser, checks_of
from tests.perceiver.published import write_published

WORDS = (
    *(
        b'"auto_map": {"AutoModel": "x.Y"},',
        b'"_attn_implementation": "x/y",',
        b'"trust_remote_code": true,',
        b"posix.system",
    ),
    *(
        b'"type": "os.system"',
        b'"path": "../.."',
        b"null",
        b"[]",
        b"{}",
        b"1e400",
        b'"architectures"',
        b"torch.nn.Linear",
    ),
)
CODE = {
    "asks for code": b'[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]',
    "list": b"[]",
    "deep": b"[" * 9000,
    "a long path": b'[{"path": "%s", "type": "sentence_transformers.models.Transformer"}]' % (b"a" * 9000),
}


def text_model(folder: Path) -> None:
    source = folder / "bert"
    source.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde", "sale"]
    (source / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
    }
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(source)
    BertTokenizer(str(source / "vocab.txt")).save_pretrained(source)
    modules = [Transformer(str(source), max_seq_length=16), Pooling(8, "mean"), Dense(8, 4)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"), create_model_card=False)


def text_features(folder: Path) -> object:
    return load_text(TextEncoderConfig(model=str(folder / "model"))).encode(["sale now"])


def vision_model(folder: Path) -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "patch_size": 8,
    }
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, num_labels=2)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def vision_encoder(folder: Path) -> object:
    config = VisionEncoderConfig(kind="vit", model=str(folder), pretrained=True)
    return load_transformer(config, ways_out="")


def timm_settings(folder: Path) -> None:
    settings = {
        "architecture": "resnet10t",
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5]},
        "model_args": {"in_chans": 3},
    }
    (folder / "config.json").write_text(json.dumps(settings))


def language_model(folder: Path) -> None:
    language = demo_language()
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)


def weights(folder: Path) -> None:
    save_file(
        {"a.weight": torch.zeros(2, 3), "b": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "config.json").write_text('{"model_type": "x", "sizes": [1, 2]}')


def volume_encoder(folder: Path) -> None:
    shape = EncoderShape(
        image_size=8, patch_size=4, embed_dim=4, depth=1, num_heads=1, window=2, global_blocks=(0,), out_channels=4
    )
    preprocessing = asdict(Preprocessing(spacing=(8.0, 8.0, 8.0), window=(40.0, 80.0), normalize="zscore_positive"))
    state = {
        "image_encoder_state_dict": ImageEncoder(shape).state_dict(),
        "shape": asdict(shape),
        "preprocessing": preprocessing,
    }
    save_checkpoint(folder / "sam_encoder.pth", state)


def qformer(folder: Path) -> None:
    sizes = asdict(
        QFormerSizes(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_query_tokens=2)
    )
    save_file({"query_tokens": torch.zeros(1, 2, 8)}, folder / "q.safetensors", metadata={"sizes": json.dumps(sizes)})


def export(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    files = {"model.safetensors": digest_of(folder / "model.safetensors")}
    about = {"class_names": ["a", "b"], "model": {"width": 3}, "decision": None}
    note = {"layout": 1, "version": "0.2.0", "app": "perceiver", "about": about, "files": files}
    (folder / "model.json").write_text(json.dumps(note), encoding="utf-8")


PARSERS = [
    Parser(
        name="export",
        write=export,
        read=lambda folder: (read_about(folder), read_weights(folder)),
        found={"elsewhere": b'{"layout": 1, "app": "a", "about": {}, "files": {"../../etc/passwd": "0"}}'},
        edited="model.json",
    ),
    Parser(
        name="text model's folder",
        write=text_model,
        read=lambda folder: check_folder(folder / "model"),
        edited="model/**/*.json",
        found={},
    ),
    Parser(name="text model", write=text_model, read=text_features, edited="model/**/*", share=0.1),
    Parser(
        name="text model's list",
        write=text_model,
        read=lambda folder: check_folder(folder / "model"),
        edited="modules.json",
        found=CODE,
    ),
    Parser(name="vision model", write=vision_model, read=vision_encoder, share=0.2),
    Parser(name="timm's settings", write=timm_settings, read=_folder_metadata),
    Parser(name="language model", write=language_model, read=lambda folder: load_language(str(folder)), share=0.05),
    Parser(
        name="hub's weights",
        write=weights,
        read=lambda folder: (weight_files(folder), read_weights(folder)),
        edited="*.safetensors",
    ),
    Parser(
        name="hub's settings", write=weights, read=lambda folder: read_json(folder / "config.json"), edited="*.json"
    ),
    Parser(
        name="encoder of volumes", write=volume_encoder, read=lambda folder: read_encoder(folder / "sam_encoder.pth")
    ),
    Parser(
        name="published Perceiver",
        write=lambda folder: write_published(folder / "model"),
        read=lambda folder: read_start(str(folder / "model")),
        edited="model/*",
    ),
    Parser(name="Q-Former", write=qformer, read=lambda folder: _read_qformer(folder / "q.safetensors")),
]
for parser in PARSERS:
    parser.__dict__.update(words=WORDS, lines=12)

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS, found=("refused",))
