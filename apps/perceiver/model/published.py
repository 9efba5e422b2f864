"""Encoders of transformers' Perceiver as those of this app and back: the same function, to rounding.

What differs lies in the weights. Their layer norms have gains and biases, which here are part of the maps that follow;
their keys and values are one map here. How an input becomes tokens is mapped, too, for texts (bytes, and learned
positions that are added to them) and for pictures whose positions are learned; of other models the input is tokens, as
their preprocessors make them. Special tokens of a vocabulary have no place here, nor have decoders.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.model.adapters import Adapters
from quartet.apps.perceiver.model.encoder import PerceiverEncoder, PerceiverOptions

__all__ = ["encoder_settings", "encoder_weights", "from_transformers", "to_transformers"]

Weights = Mapping[str, Tensor]
Map = tuple[Tensor, Tensor]
"""Weight [out, in] and bias [out]."""

_SPECIAL, _BYTES = 6, 256  # rows of the embedding: PAD, BOS, EOS, MASK, CLS, SEP; then bytes
_STANDARD: Mapping[str, Any] = {  # of a configuration, which leaves out what is so
    "num_blocks": 1,
    "num_cross_attention_heads": 8,
    "num_self_attention_heads": 8,
    "hidden_act": "gelu",
    "use_query_residual": True,
}
_MOST = 1024  # heads, or passes through the blocks
_CROSS, _SELF = "encoder.cross_attention", "encoder.self_attends"
_TEXT, _PICTURE = "input_preprocessor.embeddings", "input_preprocessor.convnet_1x1"
_PLACES = "input_preprocessor.position_embeddings"
_PROJECTION = "input_preprocessor.positions_projection"
_WORDS, _WORD_MAP = "adapters.embeddings.0.bytes.weight", "adapters.embeddings.0.embed.map"


def from_transformers(weights: Weights, config: Mapping[str, Any]) -> PerceiverEncoder:
    """The encoder of a model of transformers.

    Args:
        weights: `state_dict()` of its `PerceiverModel`, or of a model for a task.
        config: `config.to_dict()`, or what its `config.json` holds.

    Returns:
        An encoder of the weights' type. Its inputs are raw samples with one text, pixels `[B, height * width, 3]`, or
        tokens `[B, M, d_model]`; its latents are their `last_hidden_state`.

    Raises:
        UserError: The model is none of these, or cannot be expressed.
    """
    settings = encoder_settings(weights, config)
    options = PerceiverOptions(**settings.pop("options"))
    encoder = PerceiverEncoder(settings.pop("input_dim"), options=options, **settings)
    found = encoder_weights(weights)
    encoder.to(found["latents"].dtype).load_state_dict(found, strict=False)
    return encoder


def encoder_settings(weights: Weights, config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain arguments of that encoder, `options` among them.

    Raises:
        UserError: As `from_transformers`.
    """
    theirs, given = _bare(weights), {**_STANDARD, **{key: config[key] for key in _STANDARD if key in config}}
    for key in ("hidden_act", "use_query_residual"):
        if given[key] != _STANDARD[key]:
            raise UserError(f"transformers' Perceiver with {key}={given[key]!r}: expected {_STANDARD[key]!r}")
    for key in ("num_blocks", "num_cross_attention_heads", "num_self_attention_heads"):
        if type(given[key]) is not int or not 1 <= given[key] <= _MOST:
            raise UserError(f"transformers' Perceiver with {key}={given[key]!r}: expected a whole number up to {_MOST}")
    layers = 0
    while f"{_SELF}.{layers}.mlp.dense1.weight" in theirs:
        layers += 1
    latents, width = _get(theirs, "embeddings.latents").shape
    heads = given["num_self_attention_heads"]
    inner = {"cross_widths": _widths(theirs, _CROSS, given["num_cross_attention_heads"])}
    if layers:
        inner["self_widths"] = _widths(theirs, f"{_SELF}.0", heads)
    input_dim, options = _input_settings(theirs)
    return {
        "input_dim": input_dim,
        "d_model": width,
        "num_heads": heads,
        "num_latents": latents,
        "num_cross_attention_layers": 1,
        "num_self_attention_layers": layers,
        "options": {"latent_repeats": given["num_blocks"], **inner, **options},
    }


def encoder_weights(weights: Weights) -> dict[str, Tensor]:
    """The weights of that encoder, by the names that they have here."""
    theirs = _bare(weights)
    found = {"latents": _get(theirs, "embeddings.latents"), **_block(theirs, _CROSS, "cross_blocks.0")}
    for name in theirs:
        if name.startswith(f"{_SELF}.") and name.endswith(".mlp.dense1.weight"):
            layer = name.removeprefix(f"{_SELF}.").split(".")[0]
            found |= _block(theirs, f"{_SELF}.{layer}", f"latent_transformers.0.{layer}")
    if f"{_TEXT}.weight" in theirs:
        words = theirs[f"{_TEXT}.weight"][_SPECIAL:]
        identity = torch.eye(words.shape[1], dtype=words.dtype)
        found |= {_WORDS: words, **_named({_WORD_MAP: (identity, words.new_zeros(len(identity)))})}
        found["adapters.positions.0.table"] = _get(theirs, f"{_PLACES}.weight")
    elif f"{_PICTURE}.weight" in theirs:
        weight, bias = _map(theirs, _PICTURE)
        found |= _named({"stem": (weight.flatten(1), bias)})
        table = _get(theirs, f"{_PLACES}.position_embeddings")
        if f"{_PROJECTION}.weight" in theirs:
            table = nn.functional.linear(table, *_map(theirs, _PROJECTION))
        found["positions.table"] = table
    return found


def to_transformers(encoder: PerceiverEncoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An encoder as `PerceiverModel` of transformers has it.

    Args:
        encoder: One that reads its input once. Input of texts alone, byte by byte with `added` positions, and of pixels
            with a `linear` stem and `learned` positions is mapped, too; of others their model reads what
            `PerceiverEncoder.tokens` gives.

    Returns:
        Weights for `load_state_dict`, and arguments of their configuration. With `input_preprocessor.*` among the
        weights, the model needs a `PerceiverTextPreprocessor(config)`, or a `PerceiverImagePreprocessor` of prep_type
        conv1x1 with trainable positions that are projected.

    Raises:
        UserError: It reads its input more than once, or their configuration has no place for its widths.
    """
    if encoder.depth != 1:
        raise UserError(f"transformers' Perceiver reads its input once, this encoder {encoder.depth} times")
    ours = {name: value.detach() for name, value in encoder.state_dict().items()}
    layers: Any = encoder.latent_transformers[0]
    blocks: list[Any] = [encoder.cross_blocks[0], *layers]
    ends = [blocks[0], *blocks[-1:]] if len(blocks) > 1 else blocks  # all latent transformers are alike
    width, context = encoder.latents.shape[1], blocks[0].attention.key_value.in_features
    weights = {"embeddings.latents": ours["latents"], **_block_back(ours, "cross_blocks.0", _CROSS)}
    for layer in range(len(blocks) - 1):
        weights |= _block_back(ours, f"latent_transformers.0.{layer}", f"{_SELF}.{layer}")
    inputs, more = _input_back(encoder, ours)
    inner = [block.attention.widths for block in ends]
    if inner[0] == inner[-1]:
        qk_channels, v_channels = inner[0]
    elif inner == [[context, context], [width, width]]:
        qk_channels = v_channels = None  # of a cross-attention as wide as its input
    else:
        raise UserError(f"transformers' Perceiver has no place for attentions of the widths {inner}")
    return weights | inputs, {
        "num_latents": len(encoder.latents),
        "d_latents": width,
        "d_model": context,
        "num_blocks": encoder.latent_repeats,
        "num_self_attends_per_block": len(blocks) - 1,
        "num_self_attention_heads": ends[-1].attention.num_heads,
        "num_cross_attention_heads": ends[0].attention.num_heads,
        "qk_channels": qk_channels,
        "v_channels": v_channels,
        "cross_attention_widening_factor": _widening(ends[0]),
        "self_attention_widening_factor": _widening(ends[-1]),
        "attention_probs_dropout_prob": 0.0,
        **more,
    }


# ---------------------------------------------------------------------------------------------------- from their names


def _bare(weights: Weights) -> Weights:
    """Those of the `PerceiverModel` within a model for a task."""
    return {name.removeprefix("perceiver."): value for name, value in weights.items()}


def _get(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"no weights of transformers' Perceiver: {name} is missing")
    return weights[name]


def _map(weights: Weights, name: str) -> Map:
    return _get(weights, f"{name}.weight"), _get(weights, f"{name}.bias")


def _after(weights: Weights, norm: str, name: str) -> Map:
    """A map that takes up gain and bias of the norm before it."""
    (gain, shift), (weight, bias) = _map(weights, norm), _map(weights, name)
    return weight * gain, bias + weight @ shift


def _named(maps: Mapping[str, Map]) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for name, pair in maps.items() for part, value in zip(_PARTS, pair, strict=True)}


_PARTS = ("weight", "bias")


def _widths(theirs: Weights, block: str, heads: int) -> dict[str, int]:
    hidden, width = _get(theirs, f"{block}.mlp.dense1.weight").shape
    inner = {f"{name}_channels": len(_get(theirs, f"{block}.attention.self.{key}.weight")) for name, key in _INNER}
    return {"num_heads": heads, **inner, "widening_factor": hidden // width}


_INNER = (("qk", "query"), ("v", "value"))


def _input_settings(theirs: Weights) -> tuple[int, dict[str, Any]]:
    """Channels of a token, and the options of what comes before the first cross-attention."""
    if f"{_TEXT}.weight" in theirs:
        rows, width = theirs[f"{_TEXT}.weight"].shape
        if rows != _SPECIAL + _BYTES:
            raise UserError(f"an embedding of {rows} tokens: expected {_SPECIAL} special ones and {_BYTES} bytes")
        longest = len(_get(theirs, f"{_PLACES}.weight"))
        text = {"name": "text", "kind": "text", "patch": 1, "size": [], "longest": longest}
        return 0, {"modalities": [text], "stem_channels": width, "position": "added", "max_seq_len": 1}
    if f"{_PICTURE}.weight" in theirs:
        places, width = _get(theirs, f"{_PLACES}.position_embeddings").shape
        if f"{_PROJECTION}.weight" in theirs:
            width = len(theirs[f"{_PROJECTION}.weight"])
        channels, input_dim = theirs[f"{_PICTURE}.weight"].shape[:2]
        positions = {"position": "learned", "position_channels": width, "max_seq_len": places}
        return input_dim, {"stem": "linear", "stem_channels": channels, **positions}
    return _get(theirs, f"{_CROSS}.attention.self.key.weight").shape[1], {"position": "none"}


def _block(theirs: Weights, name: str, here: str) -> dict[str, Tensor]:
    """Attention and perceptron of one block."""
    own = f"{name}.attention.self"
    norm = f"{own}.layernorm2" if f"{own}.layernorm2.weight" in theirs else f"{own}.layernorm1"
    key, value = (_after(theirs, norm, f"{own}.{what}") for what in ("key", "value"))
    return _named(
        {
            f"{here}.attention.query": _after(theirs, f"{own}.layernorm1", f"{own}.query"),
            f"{here}.attention.key_value": (torch.cat([key[0], value[0]]), torch.cat([key[1], value[1]])),
            f"{here}.attention.out": _map(theirs, f"{name}.attention.output.dense"),
            f"{here}.feed_forward.1": _after(theirs, f"{name}.layernorm", f"{name}.mlp.dense1"),
            f"{here}.feed_forward.3": _map(theirs, f"{name}.mlp.dense2"),
        }
    )


# ------------------------------------------------------------------------------------------------------ to their names


def _block_back(ours: Weights, here: str, name: str) -> dict[str, Tensor]:
    """The same block with norms that do nothing more."""
    query, both, out = (_map(ours, f"{here}.attention.{part}") for part in ("query", "key_value", "out"))
    first, second = (_map(ours, f"{here}.feed_forward.{place}") for place in (1, 3))
    widths = [len(query[0]), out[0].shape[1]]
    key, value = zip(*(torch.split(part, widths) for part in both), strict=True)
    own = f"{name}.attention.self"
    maps = {
        f"{own}.query": query,
        f"{own}.key": key,
        f"{own}.value": value,
        f"{name}.attention.output.dense": out,
        f"{name}.mlp.dense1": first,
        f"{name}.mlp.dense2": second,
    }
    normed = {f"{own}.layernorm1": query, f"{name}.layernorm": first}
    if name == _CROSS:
        normed[f"{own}.layernorm2"] = both
    plain = {norm: weight.new_ones(weight.shape[1]) for norm, (weight, _) in normed.items()}
    return _named({**maps, **{norm: (ones, torch.zeros_like(ones)) for norm, ones in plain.items()}})


def _input_back(encoder: PerceiverEncoder, ours: Weights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of what comes before the first cross-attention; none where it has no counterpart."""
    adapters, positions = encoder.adapters, encoder.positions
    if isinstance(adapters, Adapters) and adapters.is_plain_text:
        words = nn.functional.linear(ours[_WORDS], *_map(ours, _WORD_MAP))
        table = ours["adapters.positions.0.table"]
        special = words.new_zeros(_SPECIAL, words.shape[1])
        weights = {f"{_TEXT}.weight": torch.cat([special, words]), f"{_PLACES}.weight": table}
        return weights, {"vocab_size": _SPECIAL + _BYTES, "max_position_embeddings": len(table)}
    if isinstance(encoder.stem, nn.Linear) and positions.kind == "learned" and encoder.input_dim == 3:
        weight, bias = _map(ours, "stem")
        scaled = (weight / ours["input_std"]).to(weight.dtype)
        shifted = (bias - scaled @ ours["input_mean"].to(weight.dtype)).to(weight.dtype)
        table = ours["positions.table"]
        identity = torch.eye(table.shape[1], dtype=table.dtype)
        maps = {_PICTURE: (scaled[..., None, None], shifted), _PROJECTION: (identity, table.new_zeros(len(identity)))}
        return {f"{_PLACES}.position_embeddings": table, **_named(maps)}, {}
    return {}, {}


def _widening(block: Any) -> int:
    first: nn.Linear = block.feed_forward[1]
    return first.out_features // first.in_features
