"""Our image encoder as the vision model of BLIP-2, for volumes (Li et al. 2023, https://arxiv.org/abs/2301.12597).

    model = build_blip2(Path("sam_encoder.pth"), language_model=language_model, image_token_id=50265)
    model(pixel_values=cubes, input_ids=ids, labels=labels).loss.backward()

`pixel_values` are cubes [B, 1, S, S, S] on the grid and with the intensities of `model.preprocessing`; `input_ids`
begin with one image token for each query token, then comes the text; `labels` are `input_ids` with -100 where nothing
is to be learnt. The model is a plain `torch.nn.Module` and one of transformers' own, so any training loop fits.

Training. Only the encoder has seen images: the Q-Former and the projection to the language model begin random, so what
a new model says means nothing. BLIP-2's recipe: `model.requires_grad_(False)`, then True for `model.qformer`,
`model.query_tokens` and `model.language_projection`; AdamW at 1e-4 on pairs of volume and report. `save_qformer` keeps
these parts, `build_blip2(..., qformer=FILE)` takes them up again; `save_pretrained` and `VolumeBlip2.from_pretrained`
keep and restore the whole.

The Q-Former alone:

    tokens = model.vision_model(cubes).last_hidden_state  # [B, g^3, C]
    answers = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=tokens).last_hidden_state
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mlcore.base.files import atomic_write
from mlcore.base.reading import reading
from mlcore.remote.model_folder import check_model_folder, check_safetensors
from mlcore.run.restore import of_this_version, rebuild
from mlcore.training.checkpoint import CheckpointError, load_checkpoint, load_model_weights
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape, ImageEncoder

__all__ = [
    "EncoderTower",
    "QFormerSizes",
    "TrainedEncoder",
    "VolumeBlip2",
    "build_blip2",
    "read_encoder",
    "save_qformer",
]

_ENCODER_KEY = "image_encoder_state_dict"  # the name is promised to users' own scripts
_INITIAL_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """Sizes of a Q-Former; the defaults are BLIP-2's.

    Attributes:
        hidden_size: Channels.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads; divide `hidden_size`.
        intermediate_size: Channels inside the feed-forward layers.
        cross_attention_frequency: Every how many layers the queries look at the image tokens.
        num_query_tokens: Tokens that the language model gets for an image.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    cross_attention_frequency: int = 2
    num_query_tokens: int = 32

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} attention heads do not divide {self.hidden_size} channels")


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """What `sam_encoder.pth` holds.

    Attributes:
        encoder: In evaluation mode, on the CPU.
        preprocessing: What its volumes went through in training.
    """

    encoder: ImageEncoder
    preprocessing: Preprocessing


class EncoderTower(nn.Module):
    """The interface of transformers' `Blip2VisionModel` around an image encoder.

    There is no class token and no further normalisation: the Q-Former needs none, and the encoder's neck ends in one.
    """

    main_input_name = "pixel_values"

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        pixel_values: Tensor,
        *,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
        **_unused: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Image tokens.

        Args:
            pixel_values: [B, 1, S, S, S], S the encoder's image size; axes R, A, S, normalised.
            interpolate_pos_encoding: Must be false: the encoder takes cubes of one size.
            return_dict: False for a tuple.

        Returns:
            `last_hidden_state` [B, g^3, C]: token (x g + y) g + z is that of patch (x, y, z); `pooler_output` [B, C],
            their mean.

        Raises:
            ValueError: Cubes of another size.
        """
        side = self.encoder.shape.image_size
        if tuple(pixel_values.shape[1:]) != (1, side, side, side) or interpolate_pos_encoding:
            raise ValueError(
                f"the encoder takes pixel_values [B, 1, {side}, {side}, {side}] and does not interpolate positions; "
                f"got {list(pixel_values.shape)}"
            )
        embedding = self.encoder(pixel_values.to(self.encoder.pos_embed.dtype))  # [B, C, g, g, g]
        tokens = embedding.flatten(2).transpose(1, 2)
        output = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))
        return output if return_dict else output.to_tuple()


class VolumeBlip2(Blip2ForConditionalGeneration):  # type: ignore[no-untyped-call]
    """BLIP-2 whose images are volumes; inherits so that saving, loading and generation are transformers' own.

    Args:
        config: Its `vision_config` also has `encoder_shape` and `preprocessing`, as `build_blip2` puts them there.
    """

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        self.vision_model = EncoderTower(ImageEncoder(_shape(vision.encoder_shape)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> "VolumeBlip2":
        """As transformers', but of a folder that asks for nothing else than to be read; see `check_model_folder`."""
        folder = Path(pretrained_model_name_or_path or "")
        if folder.name and folder.is_dir():
            check_model_folder(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @property
    def visual_encoder(self) -> ImageEncoder:
        """The image encoder, under the name that it has in the original BLIP-2."""
        tower: EncoderTower = self.vision_model
        return tower.encoder

    @property
    def preprocessing(self) -> Preprocessing:
        """What volumes must go through."""
        vision: Any = self.config.vision_config
        return _preprocessing(vision.preprocessing)


def read_encoder(path: Path) -> TrainedEncoder:
    """Read `sam_encoder.pth`; nothing in it is executed.

    Raises:
        CheckpointError: Missing, damaged or unsafe file, or names, shapes or settings that do not fit together.
    """
    state = load_checkpoint(path)
    weights = state.get(_ENCODER_KEY)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(repr, list(state)[:8])) or "none"
        raise CheckpointError(
            f"{path}: not the encoder of a trained model: expected weights under '{_ENCODER_KEY}', the keys are "
            f"{found}. A finished training run leaves sam_encoder.pth in its folder"
        )
    encoder = rebuild(lambda: ImageEncoder(_shape(state["shape"])), weights, source=path)
    with of_this_version(path):
        return TrainedEncoder(encoder, _preprocessing(state["preprocessing"]))


def build_blip2(
    encoder: Path | TrainedEncoder,
    *,
    language_model: PreTrainedModel | PreTrainedConfig,
    image_token_id: int,
    qformer: QFormerSizes | Path | None = None,
) -> VolumeBlip2:
    """BLIP-2 around a trained encoder and a language model; random in between unless a trained Q-Former is given.

    Args:
        encoder: `sam_encoder.pth`, or what `read_encoder` made of it.
        language_model: A causal language model, used as it is and not copied; a configuration gives a random one.
        image_token_id: Token that marks the places of the queries' answers in `input_ids`; below the number of the
            language model's token embeddings.
        qformer: Sizes of a new Q-Former (default: BLIP-2's), or a file that `save_qformer` wrote.

    Returns:
        The model in evaluation mode, on the CPU but for a language model that is elsewhere.

    Raises:
        CheckpointError: A file cannot be used.
        ValueError: The language model cannot be fed: its embeddings are of another width, or too few.
    """
    trained = read_encoder(encoder) if isinstance(encoder, Path) else encoder
    text: Any = language_model
    if isinstance(language_model, PreTrainedConfig):
        make: Any = AutoModelForCausalLM
        text = make.from_config(language_model)
    _check_language_model(text, image_token_id)
    sizes, weights = _read_qformer(qformer) if isinstance(qformer, Path) else (qformer or QFormerSizes(), None)
    config = _config(trained, sizes, text.config, image_token_id=image_token_id)
    with torch.device("meta"):  # every part is replaced below; a second language model would take time and memory
        model = VolumeBlip2(config)
    model.vision_model = EncoderTower(trained.encoder)
    model.language_model = text
    _begin_between(model)
    if weights is not None:
        load_model_weights(_Between(model), weights, source=str(qformer))
    nn.Module.eval(model)
    return model


def save_qformer(model: VolumeBlip2, path: Path) -> None:
    """Write what lies between encoder and language model (queries, Q-Former, projection) as a safetensors file.

    Raises:
        UserError: The file cannot be written.
    """
    config = model.config
    sizes = {f.name: getattr(config.qformer_config, f.name, None) for f in fields(QFormerSizes)}
    sizes["num_query_tokens"] = config.num_query_tokens
    tensors = {name: value.detach().cpu().contiguous() for name, value in _Between(model).state_dict().items()}
    content = to_safetensors(tensors, metadata={"sizes": json.dumps(sizes)})
    with atomic_write(path, size=len(content)) as file:
        file.write(content)


class _Between(nn.Module):
    """The parts of a model between encoder and language model, under their names there; shares their memory."""

    def __init__(self, model: VolumeBlip2) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.qformer = model.qformer
        self.language_projection = model.language_projection


def _begin_between(model: VolumeBlip2) -> None:
    """Make the parts between encoder and language model anew."""
    qformer: Any = model.config.qformer_config  # objects by now; their types also allow plain dictionaries
    text: Any = model.config.text_config
    model.qformer = Blip2QFormerModel(qformer)
    model.language_projection = nn.Linear(qformer.hidden_size, text.hidden_size)
    nn.init.normal_(model.language_projection.weight, std=_INITIAL_STD)
    nn.init.zeros_(model.language_projection.bias)
    # transformers begins with zeros, from which equal queries would stay equal for ever; the paper's code draws them.
    queries = torch.randn(1, model.config.num_query_tokens, qformer.hidden_size)
    model.query_tokens = nn.Parameter(_INITIAL_STD * queries)


def _read_qformer(path: Path) -> tuple[QFormerSizes, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such Q-Former file")
    check_safetensors(path)
    with reading(path, "a safetensors file", error=CheckpointError), safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        described = (file.metadata() or {}).get("sizes")
    if described is None:
        raise CheckpointError(f"{path}: does not tell the Q-Former's sizes; expected a file that save_qformer wrote")
    with of_this_version(path):
        return QFormerSizes(**_counts(json.loads(described))), weights


def _check_language_model(model: Any, image_token_id: int) -> None:
    rows, width = model.get_input_embeddings().weight.shape
    if width != model.config.hidden_size:
        raise ValueError(
            f"its token embeddings are {width} wide, its layers {model.config.hidden_size}; BLIP-2 needs them equal"
        )
    if not 0 <= image_token_id < rows:
        raise ValueError(f"image token {image_token_id} is not among its {rows} token embeddings; resize them first")


def _config(
    trained: TrainedEncoder, sizes: QFormerSizes, text_config: PreTrainedConfig, *, image_token_id: int
) -> Blip2Config:
    shape = trained.encoder.shape
    qformer = asdict(sizes)
    queries = qformer.pop("num_query_tokens")
    vision = {
        "hidden_size": shape.out_channels,
        "num_hidden_layers": 0,  # of the two-dimensional model, which the tower replaces
        "num_attention_heads": 1,
        "intermediate_size": 1,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "encoder_shape": asdict(shape),
        "preprocessing": asdict(trained.preprocessing),
    }
    return Blip2Config(
        vision_config=vision,
        qformer_config=Blip2QFormerConfig(**qformer),
        text_config=text_config,
        num_query_tokens=queries,
        image_token_index=image_token_id,
    )


def _counts(values: Mapping[str, Any]) -> dict[str, int]:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}")
    return dict(values)


def _shape(values: Mapping[str, Any]) -> EncoderShape:
    """The shape that `asdict` described, perhaps by way of JSON."""
    blocks = tuple(int(index) for index in values["global_blocks"])
    sizes = _counts({name: value for name, value in values.items() if name != "global_blocks"})
    shape = EncoderShape(global_blocks=blocks, **sizes)
    if shape.image_size % shape.patch_size or shape.embed_dim % shape.num_heads:
        raise ValueError(f"patches or attention heads do not divide their whole: {shape}")
    return shape


def _preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    """The settings that `asdict` described, perhaps by way of JSON."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    result = Preprocessing(**given)
    for numbers, length in ((result.spacing, 3), (result.window, 2)):
        if numbers is not None and (len(numbers) != length or not all(isinstance(n, int | float) for n in numbers)):
            raise ValueError(f"{numbers!r} are not {length} numbers")
    if result.normalize not in ("none", "zscore", "zscore_positive"):
        raise ValueError(f"normalize is {result.normalize!r}")
    return result
