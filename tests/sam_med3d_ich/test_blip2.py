"""The trained encoder inside BLIP-2: strict files, tokens that follow the volume, text, and the script."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, OPTConfig

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from quartet.apps.sam_med3d_ich.answering import Language, ask, central_cube, demo_language, load_language
from quartet.apps.sam_med3d_ich.data.phantoms import make_head
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing, prepare
from quartet.apps.sam_med3d_ich.data.volume import Volume, write_nifti
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape, ImageEncoder
from quartet.apps.sam_med3d_ich.vision_tower import (
    EncoderTower,
    QFormerSizes,
    VolumeBlip2,
    build_blip2,
    read_encoder,
    save_qformer,
)

SHAPE = EncoderShape(
    image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, window=3, global_blocks=(1,), out_channels=48
)
PREPROCESSING = Preprocessing(spacing=(8.0, 8.0, 8.0), window=(40.0, 80.0), normalize="zscore_positive")
SIZES = QFormerSizes(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_query_tokens=5
)
PROMPT = "Is there a bleed?"


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read only at its import
    torch.manual_seed(0)


def write_encoder(path: Path, **changes: Any) -> ImageEncoder:
    """A file like those that training leaves, with some top-level values changed."""
    encoder = ImageEncoder(SHAPE)
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = {"image_encoder_state_dict": weights, "shape": asdict(SHAPE), "preprocessing": asdict(PREPROCESSING)}
    save_checkpoint(path, {**state, **changes})
    return encoder


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    path = tmp_path / "sam_encoder.pth"
    write_encoder(path)
    return path


@pytest.fixture
def language() -> Language:
    return demo_language()


@pytest.fixture
def model(encoder_file: Path, language: Language) -> VolumeBlip2:
    return build_blip2(
        encoder_file, language_model=language.model, image_token_id=language.image_token_id, qformer=SIZES
    )


def cubes(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 16, 16, 16)


def inputs(language: Language, *, batch: int = 2) -> Tensor:
    text = language.tokenizer(PROMPT)["input_ids"]
    return torch.tensor([[language.image_token_id] * SIZES.num_query_tokens + text] * batch)


def logits(model: VolumeBlip2, language: Language, image: Tensor) -> Tensor:
    result: Tensor = model(pixel_values=image, input_ids=inputs(language, batch=len(image))).logits
    return result


# ------------------------------------------------------------------------------------------------------ encoder's file


def test_encoder_round_trip(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "e.pth")
    trained = read_encoder(tmp_path / "e.pth")
    assert trained.preprocessing == PREPROCESSING
    assert trained.encoder.shape == SHAPE
    image = cubes()
    torch.testing.assert_close(trained.encoder(image), encoder(image), rtol=0, atol=0)


def test_promised_snippet(tmp_path: Path, model: VolumeBlip2, language: Language) -> None:
    write_encoder(tmp_path / "other.pth")
    image = cubes()
    before = logits(model, language, image)
    checkpoint = torch.load(tmp_path / "other.pth")
    result = model.visual_encoder.load_state_dict(checkpoint["image_encoder_state_dict"])
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert not torch.equal(logits(model, language, image), before)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshaped"])
def test_other_weights_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "wrong.pth"
    weights = dict(ImageEncoder(SHAPE).state_dict())
    name = "blocks.1.attn.qkv.weight"
    if fault == "missing":
        del weights[name]
    else:
        name = "extra.weight" if fault == "unexpected" else name
        weights[name] = torch.zeros(3)
    write_encoder(path, image_encoder_state_dict=weights)
    with pytest.raises(CheckpointError, match=r"wrong\.pth") as error:
        read_encoder(path)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": {**asdict(SHAPE), "image_size": 32}},
        {"shape": {**asdict(SHAPE), "patch_size": 0}},
        {"shape": {**asdict(SHAPE), "depth": "2"}},
        {"shape": {**asdict(SHAPE), "image_size": 17}},
        {"shape": {"image_size": 16}},
        {"shape": 3},
        {"preprocessing": {**asdict(PREPROCESSING), "spacing": [1.0]}},
        {"preprocessing": {**asdict(PREPROCESSING), "normalize": "magic"}},
        {"preprocessing": {"colour": 1}},
        {"image_encoder_state_dict": [1, 2]},
        {"image_encoder_state_dict": {"pos_embed": 1.0}},
    ],
)
def test_other_contents_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_encoder(tmp_path / "odd.pth", **changes)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        read_encoder(tmp_path / "odd.pth")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


def test_payload_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(canary))).close()
    canary.unlink()  # the payload works
    state = {"image_encoder_state_dict": {}, "shape": asdict(SHAPE), "preprocessing": Payload(canary)}
    torch.save(state, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(state))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_encoder(tmp_path / name)
    assert not canary.exists()


# -------------------------------------------------------------------------------------------------------- image tokens


def test_tokens_are_the_embedding(encoder_file: Path) -> None:
    encoder = read_encoder(encoder_file).encoder
    image = cubes()
    output = EncoderTower(encoder)(image)
    embedding = encoder(image)  # [B, C, g, g, g]
    assert output.last_hidden_state.shape == (2, 4**3, 48)
    torch.testing.assert_close(output.last_hidden_state[1, (3 * 4 + 1) * 4 + 2], embedding[1, :, 3, 1, 2])


def test_tokens_follow_the_grid(encoder_file: Path) -> None:
    tower = EncoderTower(read_encoder(encoder_file).encoder)
    image = cubes(1)
    for patch in ((0, 1, 3), (3, 0, 1), (2, 2, 0)):
        changed = image.clone()
        changed[(0, 0, *(slice(4 * p, 4 * p + 4) for p in patch))] += 1
        difference = (tower(changed).last_hidden_state - tower(image).last_hidden_state)[0].norm(dim=-1).view(4, 4, 4)
        distance = (torch.cartesian_prod(*[torch.arange(4)] * 3) - torch.tensor(patch)).abs().amax(-1).view(4, 4, 4)
        assert distance.flatten()[difference.argmax()] <= 1  # the neck mixes neighbours
        assert difference[distance <= 1].mean() > 2 * difference[distance > 1].mean()


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 8), (1, 3, 16, 16, 16), (1, 3, 16, 16)])
def test_other_cubes_are_refused(encoder_file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 1, 16, 16, 16\]"):
        EncoderTower(read_encoder(encoder_file).encoder)(torch.zeros(shape))


# --------------------------------------------------------------------------------------------------------------- model


def test_nothing_is_left_unmade(model: VolumeBlip2) -> None:
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not [name for name, value in everything.items() if value.is_meta]
    assert len(torch.unique(model.query_tokens[0].detach(), dim=0)) == SIZES.num_query_tokens


def test_forward_and_loss(model: VolumeBlip2, language: Language) -> None:
    ids = inputs(language)
    labels = ids.masked_fill(ids == language.image_token_id, -100)
    output = model(pixel_values=cubes(), input_ids=ids, labels=labels)
    assert output.logits.shape == (*ids.shape, language.model.config.vocab_size)
    assert torch.isfinite(output.logits).all()
    plain = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, plain)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients(model: VolumeBlip2, language: Language, frozen: bool) -> None:
    model.train()
    model.visual_encoder.requires_grad_(not frozen)
    ids = inputs(language)
    model(pixel_values=cubes(), input_ids=ids, labels=ids).loss.backward()
    for part in (model.qformer, model.language_projection):
        assert all(p.grad is not None for p in part.parameters())
    assert model.query_tokens.grad.abs().sum() > 0
    reached = [name for name, p in model.visual_encoder.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached == ([] if frozen else [name for name, _ in model.visual_encoder.named_parameters()])


def test_gradient_checkpointing_changes_nothing(model: VolumeBlip2, language: Language) -> None:
    image, ids = cubes(), inputs(language)
    gradients = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
        assert model.visual_encoder.gradient_checkpointing == enable
        model.zero_grad()
        model(pixel_values=image, input_ids=ids, labels=ids).loss.backward()
        gradients.append(model.visual_encoder.pos_embed.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_volume_matters(model: VolumeBlip2, language: Language) -> None:
    first, second = cubes(1), cubes(1)
    tokens = [model.vision_model(image).last_hidden_state for image in (first, second)]
    assert (tokens[0] - tokens[1]).abs().max() > 0.1
    assert (logits(model, language, first) - logits(model, language, second)).abs().max() > 1e-6
    torch.testing.assert_close(logits(model, language, first), logits(model, language, first.clone()), rtol=0, atol=0)


def test_language_model_of_lower_precision(model: VolumeBlip2, language: Language) -> None:
    image = cubes(1)
    full = logits(model, language, image)
    model.language_model.to(torch.bfloat16)
    torch.testing.assert_close(logits(model, language, image).float(), full, rtol=0.05, atol=0.02)
    ask(model, language, image, prompt=PROMPT, max_new_tokens=2)


def test_qformer_alone(model: VolumeBlip2) -> None:
    tokens = model.vision_model(cubes()).last_hidden_state
    answers = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=tokens).last_hidden_state
    assert answers.shape == (2, SIZES.num_query_tokens, SIZES.hidden_size)
    assert not torch.equal(answers[0], answers[1])


def test_generate_continues_the_prompt(model: VolumeBlip2, language: Language) -> None:
    """Each token is the likeliest one that a forward pass gives, image token excepted."""
    image, ids = cubes(1), inputs(language, batch=1)
    output = model.generate(
        image, input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0,
        suppress_tokens=[language.image_token_id],
    )  # fmt: skip
    assert output.shape == (1, ids.shape[1] + 6)
    for end in range(ids.shape[1], output.shape[1]):
        scores = model(pixel_values=image, input_ids=output[:, :end]).logits[0, -1]
        scores[language.image_token_id] = -torch.inf
        assert int(scores.argmax()) == int(output[0, end])


def test_answer_is_text(model: VolumeBlip2, language: Language) -> None:
    answer = ask(model, language, cubes(1), prompt=PROMPT, max_new_tokens=4)
    assert PROMPT not in answer
    assert answer.isascii()
    with pytest.raises(UserError, match="--prompt: <image>"):
        ask(model, language, cubes(1), prompt="<image> What is this?", max_new_tokens=4)
    with pytest.raises(UserError, match="more than the 1024"):
        ask(model, language, cubes(1), prompt=PROMPT, max_new_tokens=1010)


def test_training_tells_two_volumes_apart(model: VolumeBlip2, language: Language) -> None:
    """What the Q-Former takes from a frozen encoder is enough to give each volume its own answer."""
    model.visual_encoder.requires_grad_(requires_grad=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    image, ids = cubes(), inputs(language)
    answers = torch.tensor([language.tokenizer("Y")["input_ids"], language.tokenizer("N")["input_ids"]])
    sequence = torch.cat([ids, answers], dim=1)
    labels = torch.cat([torch.full_like(ids, -100), answers], dim=1)
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(pixel_values=image, input_ids=sequence, labels=labels).loss.backward()
        optimizer.step()
    said = [ask(model, language, one[None], prompt=PROMPT, max_new_tokens=1) for one in image]
    assert said == ["Y", "N"]


def test_save_and_load_whole(model: VolumeBlip2, language: Language, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = VolumeBlip2.from_pretrained(tmp_path / "saved")
    assert again.preprocessing == PREPROCESSING
    assert again.visual_encoder.shape == SHAPE
    image = cubes()
    torch.testing.assert_close(logits(again, language, image), logits(model, language, image), rtol=0, atol=0)


def test_qformer_file(model: VolumeBlip2, language: Language, encoder_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "qformer.safetensors"
    save_qformer(model, path)
    again = build_blip2(
        encoder_file, language_model=language.model, image_token_id=language.image_token_id, qformer=path
    )
    image = cubes()
    torch.testing.assert_close(logits(again, language, image), logits(model, language, image), rtol=0, atol=0)
    wider = OPTConfig(hidden_size=96, word_embed_proj_dim=96, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32)
    with pytest.raises(CheckpointError, match=r"qformer.safetensors(.|\n)*language_projection.weight"):
        build_blip2(encoder_file, language_model=wider, image_token_id=3, qformer=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"qformer\.safetensors: damaged"):
        build_blip2(encoder_file, language_model=language.model, image_token_id=3, qformer=path)


def test_language_model_that_cannot_be_fed(encoder_file: Path, language: Language) -> None:
    with pytest.raises(ValueError, match="resize them first"):
        build_blip2(encoder_file, language_model=language.model, image_token_id=10**6, qformer=SIZES)
    narrow = OPTConfig(hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32)
    with pytest.raises(ValueError, match="16 wide, its layers 32"):
        build_blip2(encoder_file, language_model=narrow, image_token_id=3, qformer=SIZES)


# --------------------------------------------------------------------------------------------- language model and cube


def test_demo_tokenizer_keeps_any_text(language: Language) -> None:
    text = "Blutung? 뇌출혈 \t 2 mL"
    assert language.tokenizer.decode(language.tokenizer(text)["input_ids"]) == text


def test_local_language_model(language: Language, tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    loaded = load_language(str(folder))
    assert loaded.image_token_id == language.image_token_id
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded.model(ids).logits, language.model(ids).logits)


def test_language_model_without_room_for_the_image_token(language: Language, tmp_path: Path) -> None:
    small = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=language.image_token_id, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1,
            num_attention_heads=2, ffn_dim=16,
        )
    )  # fmt: skip
    small.save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    loaded = load_language(str(tmp_path))
    assert loaded.model.config.vocab_size == loaded.image_token_id + 1


def test_language_models_that_are_refused(language: Language, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"--language_model: the weights of nobody/nothing cannot .*=FOLDER.*--demo",
    ):
        load_language("nobody/nothing")
    folder = tmp_path / "pickled"
    language.model.config.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    torch.save(language.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_language(str(folder))
    (folder / "pytorch_model.bin").unlink()
    weights = {name: value.clone() for name, value in language.model.model.state_dict().items()}
    weights.pop("decoder.layers.1.fc1.weight")
    save_file(
        {f"model.{name}": value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks weights .*\(1, first model\.decoder\.layers\.1\.fc1\.weight"):
        load_language(str(folder))


def test_cube_lies_around_the_head() -> None:
    array = np.full((40, 30, 12), -1000, dtype=np.float32)
    array[20:36, 4:20, 2:10] = 60  # the head
    array[2:38, 28, :] = 60  # the table: wider, but less of it
    array[22, 6, 4] = 45
    prepared = prepare(Volume(array, np.eye(4)), Preprocessing(spacing=None, window=(40, 80), normalize="none"))
    cube, corner = central_cube(prepared, side=16)
    assert corner == [20, 4, -2]
    assert cube.shape == (16, 16, 16)
    assert cube[2, 2, 6] == 45
    np.testing.assert_array_equal(cube[:, :, 2:14], prepared.image[20:36, 4:20])
    assert (cube[:, :, :2] == prepared.background).all()
    assert central_cube(prepared, side=24)[1] == [16, 0, -6]  # moved into the volume
    empty = prepare(Volume(array * 0 - 500, np.eye(4)), Preprocessing(spacing=None, normalize="none"))
    with pytest.raises(UserError, match="Hounsfield"):
        central_cube(empty, side=16)


# -------------------------------------------------------------------------------------------------------------- script


def script(repository: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(repository / "apps/sam_med3d_ich/blip2.py"), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment, check=False)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    spacing = (8.0, 8.0, 10.0)
    head = make_head(np.random.default_rng(3), bleeds=1, shape=(24, 24, 16), spacing=spacing)
    path = tmp_path / "a scan.nii.gz"
    write_nifti(path, head.image, like_affine=np.diag([*spacing, 1.0]))
    return path


def test_script_demo(repository: Path, encoder_file: Path, scan: Path, tmp_path: Path) -> None:
    answer, tokens = tmp_path / "answer.json", tmp_path / "tokens.npy"
    done = script(
        repository, "--encoder", encoder_file, "--image", scan, "--demo", "--output", answer, "--tokens_out", tokens,
        "--prompt", PROMPT, "--max_new_tokens", 5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "meaningless" in done.stdout
    report = json.loads(answer.read_text(encoding="utf-8"))
    assert report["prompt"] == PROMPT
    assert report["qformer"] is None
    assert report["answer"] in done.stdout
    written = np.load(tokens)
    assert written.shape == (64, 48)
    assert written.dtype == np.float32
    assert load_checkpoint(encoder_file).keys() == {"image_encoder_state_dict", "shape", "preprocessing"}


def test_script_mistakes(repository: Path, encoder_file: Path, scan: Path) -> None:
    done = script(repository, "--encoder", encoder_file, "--image", scan, "--language_model", "nobody/nothing")
    assert done.returncode == 2
    assert "hf download" in done.stderr
    assert "Traceback" not in done.stderr
    done = script(repository, "--encoder", encoder_file, "--image", scan)
    assert done.returncode == 2
    assert "nothing to do" in done.stderr
