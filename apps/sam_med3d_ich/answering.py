"""What `blip2.py` does: a volume to image tokens, and image tokens and a question to text."""

import logging
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mlcore.base.console import setup_logging
from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, write_json
from mlcore.base.reading import reading
from mlcore.base.seeding import seed_everything
from mlcore.remote.hub import find_model
from quartet.apps.sam_med3d_ich.data.crops import cut, starts
from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE, Prepared, prepare
from quartet.apps.sam_med3d_ich.data.volume import read_volume
from quartet.apps.sam_med3d_ich.vision_tower import (
    EncoderTower,
    QFormerSizes,
    TrainedEncoder,
    VolumeBlip2,
    build_blip2,
    read_encoder,
)

__all__ = ["Language", "ask", "central_cube", "demo_language", "load_language", "run"]

_log = logging.getLogger(__name__)

_IMAGE_TOKEN = "<image>"  # noqa: S105 - no password
_DEMO_SIZES = QFormerSizes(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_query_tokens=8
)


@dataclass(frozen=True, eq=False)
class Language:
    """A language model with its tokenizer, which knows the image token.

    Attributes:
        model: A causal language model.
        tokenizer: Its tokenizer.
        image_token_id: Token that marks the image's places in a text.
        unsaid: Further tokens that answers must not have.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_token_id: int
    unsaid: tuple[int, ...] = ()


def run(request: Namespace) -> int:
    """Do what the script promises.

    Args:
        request: The script's arguments; see its help.

    Returns:
        Exit code 0.

    Raises:
        UserError: A file, an argument or the language model cannot be used.
    """
    setup_logging()
    device = pick_device(request.device)
    trained = read_encoder(request.encoder)
    cube, corner = _read_cube(request, trained)
    report: dict[str, Any] = {"image": str(request.image), "encoder": str(request.encoder), "corner": corner}
    if request.tokens_out is not None:
        tower = EncoderTower(trained.encoder).to(device)
        report["tokens"] = _write_tokens(tower, cube.to(device), request.tokens_out)
    if request.demo or request.language_model is not None:
        model, language = _models(request, trained)
        nn.Module.to(model, device)
        answer = ask(model, language, cube, prompt=request.prompt, max_new_tokens=request.max_new_tokens)
        _log.info("%s", answer)
        report |= {"prompt": request.prompt, "answer": answer, "language_model": request.language_model or "demo"}
        report |= {"qformer": None if request.qformer is None else str(request.qformer)}
    if request.output is not None:
        write_json(request.output, report)
    return 0


def central_cube(prepared: Prepared, *, side: int) -> tuple[NDArray[np.float32], list[int]]:
    """The cube in the middle of the head.

    It is centred on the bounding box of the largest connected part (26 neighbours) above the background, which leaves
    out table and pillow, and moved into the volume where it would stick out. A volume narrower than the cube lies in
    its middle, filled up with background, as in training. (Where the encoder was trained without an HU window, noise in
    the air is above the background too, and the cube is that in the middle of the volume.)

    Args:
        prepared: The volume on the encoder's grid.
        side: Voxels of the cube along each axis.

    Returns:
        float32 [S, S, S], and the cube's corner on the grid (negative where it is padded).

    Raises:
        UserError: Nothing is above the background.
    """
    labels, count = ndimage.label(prepared.image > prepared.background + 1e-3, structure=EVERYWHERE)
    if count == 0:
        raise UserError("nothing lies above the lowest value of the encoder's HU window; are these Hounsfield units?")
    largest = int(np.bincount(labels.ravel())[1:].argmax())
    box = ndimage.find_objects(labels)[largest]
    middle = np.array([(axis.start + axis.stop) / 2 for axis in box])
    first, last = starts(prepared.image.shape, size=side).T
    corner = np.clip(np.rint(middle - side / 2).astype(np.int64), first, last)
    return cut(prepared.image, corner, (side,) * 3, fill=prepared.background), corner.tolist()


def ask(model: VolumeBlip2, language: Language, cube: Tensor, *, prompt: str, max_new_tokens: int) -> str:
    """The model's answer: the likeliest word after word.

    Args:
        model: Made with this language model.
        language: Its tokenizer is used.
        cube: float32 [1, 1, S, S, S].
        prompt: Text that the answer continues.
        max_new_tokens: At most so many tokens.

    Raises:
        UserError: The text is too long for the language model, or holds its image token.
    """
    config, tokenizer = model.config, language.tokenizer
    text: list[int] = tokenizer(prompt)["input_ids"]
    if language.image_token_id in text:
        raise UserError(f"--prompt: {_IMAGE_TOKEN} stands for the image and is put in front by itself; leave it out")
    length = config.num_query_tokens + len(text)
    longest = getattr(config.text_config, "max_position_embeddings", None)
    if longest is not None and length + max_new_tokens > longest:
        raise UserError(
            f"--prompt: {config.num_query_tokens} image and {len(text)} text tokens with {max_new_tokens} new ones are "
            f"more than the {longest} that the language model can read; shorten it or lower --max_new_tokens"
        )
    tokens = [language.image_token_id] * config.num_query_tokens + text
    ids: Any = torch.tensor([tokens], device=model.query_tokens.device)  # transformers' types want a LongTensor
    mask: Any = torch.ones_like(ids)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output: Tensor = model.generate(
        cube.to(ids.device),
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=[language.image_token_id, *language.unsaid],
        pad_token_id=padding,
    )
    return str(tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()


def load_language(name: str) -> Language:
    """A causal language model from a local folder or the Hugging Face hub; safetensors only, none of its code runs.

    Raises:
        UserError: It cannot be had, lacks weights, or is of a kind that does not fit.
    """
    folder = find_model(name, setting="--language_model", ways_out="Or try --demo.")
    with reading(folder, "tokenizer and *.safetensors of a causal language model that transformers knows"):
        known = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **known)
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **known
        )
    model, loading = found
    if missing := sorted(loading["missing_keys"]):  # transformers draws them at random
        raise UserError(f"{folder}: lacks weights of the language model ({len(missing)}, first {missing[0]})")
    return _with_image_token(model, tokenizer)


def demo_language() -> Language:
    """A tiny random language model over bytes, made on the spot; its text means nothing."""
    special = ["<pad>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    make_tokenizer: Any = PreTrainedTokenizerFast  # no types there
    tokenizer = make_tokenizer(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")  # noqa: S106
    config = OPTConfig(
        vocab_size=len(vocabulary) + 1,
        hidden_size=64,
        word_embed_proj_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=128,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = OPTForCausalLM(config)
    nn.Module.eval(model)
    unprintable = tuple(index for token, index in vocabulary.items() if token not in special and not token.isascii())
    return replace(_with_image_token(model, tokenizer), unsaid=unprintable)


def _with_image_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Language:
    tokenizer.add_tokens([AddedToken(_IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    token = tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
    assert isinstance(token, int)  # noqa: S101 - one token in, one number out
    embeddings: Any = model.get_input_embeddings()
    if token >= len(embeddings.weight):
        model.resize_token_embeddings(token + 1, mean_resizing=False)  # never read: the queries' answers replace it
    return Language(model, tokenizer, token)


def _read_cube(request: Namespace, trained: TrainedEncoder) -> tuple[Tensor, list[int]]:
    volume = read_volume(request.image, array_spacing=request.array_spacing)
    try:
        cube, corner = central_cube(prepare(volume, trained.preprocessing), side=trained.encoder.shape.image_size)
    except UserError as error:
        raise UserError(f"{request.image}: {error}") from None
    return torch.from_numpy(cube)[None, None], corner


def _write_tokens(tower: EncoderTower, cube: Tensor, path: Path) -> dict[str, Any]:
    with torch.inference_mode():
        tokens = tower(cube).last_hidden_state[0].float().cpu().numpy()
    with atomic_write(path, size=tokens.nbytes) as file:
        np.save(file, tokens)
    _log.info("%s: %d image tokens of %d channels", path, *tokens.shape)
    return {"file": str(path), "shape": list(tokens.shape)}


def _models(request: Namespace, trained: TrainedEncoder) -> tuple[VolumeBlip2, Language]:
    seed_everything(0)  # what is random is the same every time
    language = demo_language() if request.language_model is None else load_language(request.language_model)
    if request.demo:
        _log.warning("--demo: Q-Former and language model are tiny, random and untrained; the text is meaningless")
    elif request.qformer is None:
        _log.warning(
            "no --qformer FILE: the Q-Former between encoder and language model is random, so the text says nothing "
            "about the image until it is trained (vision_tower.py tells how)"
        )
    sizes = request.qformer or (_DEMO_SIZES if request.demo else QFormerSizes())
    try:
        model = build_blip2(
            trained, language_model=language.model, image_token_id=language.image_token_id, qformer=sizes
        )
    except ValueError as error:
        raise UserError(f"--language_model {request.language_model}: {error}") from None
    return model, language
