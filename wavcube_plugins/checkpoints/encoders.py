"""WavLM, HuBERT and wav2vec 2.0 from tensors named by torchaudio, Hugging Face or fairseq."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from wavcube_plugins.checkpoints.names import CheckpointError
from wavcube_plugins.checkpoints.native import check_tensors
from wavcube_plugins.checkpoints.sizes import match_wavlm, wavlm_sizes
from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.models.wavlm import WavLM

# From the names of Hugging Face (which the public WavCube files use too) and fairseq (the authors' own WavLM files) to
# torchaudio's; the three agree in the rest.
_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"feature_projection\.", "encoder.feature_projection."),
        (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
        (r"post_extract_proj\.", "encoder.feature_projection.projection."),
        (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"encoder\.(?!feature_projection\.|transformer\.)", "encoder.transformer."),
        (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
        (r"(.*\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
        (r"(.*\.layers\.\d+)\.self_attn\.", r"\1.attention."),
        (r"(.*\.attention)\.grep_linear\.", r"\1.gru_rel_pos_linear."),
        (r"(.*\.attention)\.grep_a$", r"\1.gru_rel_pos_const"),
        (r"(.*\.attention)\.relative_attention_bias\.", r"\1.rel_attn_embed."),
        (r"(.*\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
        (r"(.*\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
        # Weight norm before torch 2.0.
        (r"(.*\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(.*\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
    )
]
_ATTENTION = re.compile(r"(.*\blayers\.\d+\.attention\.)(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)")

# Where a whole model with a head for some task keeps its encoder.
_PREFIXES = ("wavlm.", "hubert.", "wav2vec2.", "w2v_model.", "model.")


def encoder_name(name: str) -> str | None:
    """Return torchaudio's name of an encoder's tensor; None if the tensor serves pretraining or a task."""
    if not name.startswith(
        ("feature_extractor.", "feature_projection.", "layer_norm.", "post_extract_proj.", "encoder.")
    ):
        return None
    for pattern, native in _NAMES:
        if pattern.match(name):
            name = pattern.sub(native, name, count=1)
    return name


def join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join q, k and v of every attention that has relative positions, as torchaudio does.

    Plain attention keeps them apart in torchaudio as well.

    Raises:
        KeyError: one of the three is missing.
    """
    joined: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        attention = _ATTENTION.fullmatch(name)
        if attention is None or f"{attention[1]}gru_rel_pos_const" not in state:
            joined[name] = tensor
        elif attention[2] == "out_proj":
            joined[f"{attention[1]}attention.out_proj.{attention[3]}"] = tensor
        else:
            packed.setdefault(f"{attention[1]}attention.in_proj_{attention[3]}", {})[attention[2]] = tensor
    for name, parts in packed.items():
        if len(parts) < 3:
            raise KeyError(f"a part of {name}")
        joined[name] = torch.cat([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
    return joined


def build_wavlm(
    state: Mapping[str, Tensor], path: Path, config: WavLMConfig | None = None, *, rest: WavLMConfig | None = None
) -> WavLM:
    """Build an encoder from tensors named by torchaudio, Hugging Face or fairseq.

    Args:
        state: The tensors; those of heads and quantisers are left out.
        path: Where they come from.
        config: Sizes; None finds them among the known backbones and presets.
        rest: A configuration whose sizes hold where the tensors tell none (heads of plain attention, strides,
            `max_distance`, the place of the layer norms), in place of the known encoders.

    Returns:
        The encoder in eval mode, float32.

    Raises:
        CheckpointError: the tensors are not those of such an encoder, or of other sizes.
    """
    for prefix in _PREFIXES:
        if any(name.startswith(f"{prefix}feature_extractor.") for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    renamed = {native: tensor for name, tensor in state.items() if (native := encoder_name(name))}
    if not renamed:
        found = next(iter(state), "no tensor")
        raise CheckpointError(f"{path}: expected the tensors of WavLM, HuBERT or wav2vec 2.0, found {found}")
    with name_missing_tensors(path, "WavLM"):
        renamed = join_attention(renamed)
        config = match_wavlm(renamed, config) if rest is None else dataclasses.replace(rest, **wavlm_sizes(renamed))
    with torch.device("meta"):
        wavlm = WavLM(config)
    check_tensors(wavlm, renamed, path)
    # Copied out of the mapped file, which may be replaced or removed while the encoder lives.
    wavlm.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in renamed.items()}, assign=True)
    wavlm.metadata = {"source": str(path)}
    return wavlm.eval()


@contextmanager
def name_missing_tensors(path: Path, what: str = "WavCube") -> Iterator[None]:
    """Turn a KeyError or ValueError about the tensors of a file into a CheckpointError that names the file."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path}: expected the tensors of a {what} model, but it lacks {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
