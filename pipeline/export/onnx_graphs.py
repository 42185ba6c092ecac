"""Export a captioner as three ONNX graphs: what `onnx_captioner.py` runs without torch.

encoder.onnx: preprocessed images -> features; memory.onnx: features -> the state before the first
token; step.onnx: tokens and the state -> log-probabilities and the next state. All take batches of
any size. P images, k beams per image, V words.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.weights import BackboneWeights
from pipeline.captions.vocabulary import Vocabulary
from pipeline.decoders.decoder import DecoderState, StepDecoder
from pipeline.extraction.feature_extractor import Encoder
from pipeline.features.recipe import FeatureRecipe
from pipeline.generation.beam_search import BeamSearchConfig
from pipeline.runtime.errors import InputError
from pipeline.runtime.files import atomic_write, copy_file, write_json

FORMAT = 1
OPSET = 20
CPU = torch.device("cpu")
RUNNER = Path(__file__).with_name("onnx_captioner.py")
_Dynamic = dict[int, torch.export.Dim]  # the dimensions of an input that vary
_IMAGES, _BEAMS, _TOKENS = (torch.export.Dim(name) for name in ("images", "beams", "tokens"))


def require_exportable(search: BeamSearchConfig) -> None:
    """Raise an InputError if `onnx_captioner.py` cannot search like this."""
    if search.consensus_weight:
        raise InputError(
            "the ONNX captioner has no consensus reranking; leave out --onnx, or set "
            "evaluate.consensus_weight: 0 and run 'dvc repro'"
        )


def export_onnx(
    out: Path,
    backbones: Sequence[BackboneWeights],
    recipe: FeatureRecipe,
    decoder: StepDecoder,
    vocabulary: Vocabulary,
    search: BeamSearchConfig,
) -> None:
    """Write the graphs, `onnx.json` and the module that runs them into the folder `out`.

    Args:
        decoder: on the CPU, in eval mode; a single one or an ensemble.
        search: the default settings; one group of beams.

    Raises:
        InputError: the package onnx is missing, or a graph cannot be exported.
    """
    _require_onnx()
    features = export_encoder(out, backbones, recipe)
    export_decoder(out, decoder, features)
    views = [asdict(view.preprocessing) for view in recipe.views]
    content = {
        "format": FORMAT,
        "crop_mode": recipe.crop_mode,
        "views": [{name: view[name] for name in _PREPROCESSING} for view in views],
        "search": {name: getattr(search, name) for name in _SEARCH},
        "vocabulary": list(vocabulary.words),
    }
    write_json(out / "onnx.json", content)
    copy_file(RUNNER, out / RUNNER.name)


# What the graphs do not hold themselves.
_PREPROCESSING = ("resize", "size", "interpolation")
_SEARCH = ("beam_size", "length_penalty", "max_length", "no_repeat_ngram_size", "allow_unk")


def export_encoder(
    out: Path, backbones: Sequence[BackboneWeights], recipe: FeatureRecipe
) -> Tensor:
    """Write `encoder.onnx`; return an example of its features (P, …)."""
    encoder = Encoder(backbones, recipe, CPU)
    sizes = [view.preprocessing.size for view in recipe.views]
    # Two images: the exporter would take a size of 1 for a constant.
    images = [torch.zeros(2, size, size, 3, dtype=torch.uint8) for size in sizes]
    inputs = {f"images_{i}": (view, {0: _IMAGES}) for i, view in enumerate(images)}
    _export(out / "encoder.onnx", encoder, inputs, ["features"])
    with torch.inference_mode():
        return encoder(*images)


def export_decoder(out: Path, decoder: StepDecoder, features: Tensor) -> None:
    """Write `memory.onnx` and `step.onnx`.

    Args:
        features: an example of at least two images.
    """
    with torch.inference_mode():
        state = decoder.init_state(features)
    memory = {f"memory_{i}": tensor for i, tensor in enumerate(state.memory)}
    hidden = {f"hidden_{i}": tensor for i, tensor in enumerate(state.hidden)}
    inputs = {"features": (features, {0: _IMAGES})}
    _export(out / "memory.onnx", _Memory(decoder), inputs, [*memory, *hidden])
    tokens = torch.ones(len(features), 3, dtype=torch.int64)
    inputs = {"token_ids": (tokens, {0: _IMAGES, 1: _BEAMS})}
    inputs |= {name: (tensor, {0: _IMAGES}) for name, tensor in memory.items()}
    inputs |= {name: _beams_of(tensor) for name, tensor in hidden.items()}
    outputs = ["log_probs", *(f"next_{name}" for name in hidden)]
    _export(out / "step.onnx", _Step(decoder, len(memory)), inputs, outputs)


def _beams_of(hidden: Tensor) -> tuple[Tensor, _Dynamic]:
    """An example (P, k, …) of a hidden tensor (P, …), and its dynamic dimensions."""
    dynamic: _Dynamic = {0: _IMAGES, 1: _BEAMS}
    example = hidden.unsqueeze(1).repeat_interleave(3, dim=1)
    if example.shape[2] == 0:  # a transformer's tokens so far
        example = example.new_zeros(*example.shape[:2], 2, *example.shape[3:])
        dynamic[2] = _TOKENS
    return example, dynamic


class _DecoderGraph(nn.Module):
    """A decoder, or the members of an ensemble, with its weights."""

    def __init__(self, decoder: StepDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.members = nn.ModuleList(getattr(decoder, "members", []))
        self.eval()


class _Memory(_DecoderGraph):
    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        state = self.decoder.init_state(features)
        # The same tensor twice would be one output of the graph.
        return (*state.memory, *(tensor.clone() for tensor in state.hidden))


class _Step(_DecoderGraph):
    """One step, with images and beams as two dimensions: the memory, of which beams share a row,
    is never copied."""

    def __init__(self, decoder: StepDecoder, num_memory: int) -> None:
        super().__init__(decoder)
        self.num_memory = num_memory

    def forward(self, token_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Tokens (P, k), the memory (P, …) and hidden tensors (P, k, …) -> log-probabilities
        (P, k, V) and the next hidden tensors."""
        memory, hidden = state[: self.num_memory], state[self.num_memory :]
        rows = DecoderState(memory, tuple(tensor.flatten(0, 1) for tensor in hidden))
        logits, after = self.decoder.step(token_ids.flatten(), rows)
        log_probs = logits.log_softmax(dim=-1)
        shape = token_ids.shape
        return tuple(tensor.unflatten(0, shape) for tensor in (log_probs, *after.hidden))


class _Positional(nn.Module):
    """A module whose inputs are one tuple, whatever their number: dynamic shapes take its form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _require_onnx() -> None:
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        raise InputError(
            "an export to ONNX needs the packages onnx and onnxscript; run: "
            "pip install onnx onnxscript"
        )


def _export(
    path: Path,
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, _Dynamic]],
    outputs: list[str],
) -> None:
    """Write one graph; of the same module always the same bytes.

    Args:
        inputs: an example and the dynamic dimensions of each, by name.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # an optional dependency

    examples, dynamic = zip(*inputs.values(), strict=True)
    try:
        with _quietly(), torch.inference_mode():
            program = torch.onnx.export(
                _Positional(module),
                examples,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=(dynamic,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises many types
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise InputError(f"{path.name} cannot be exported ({reason})") from None
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # paths and lines of code
    model = program.model_proto
    with atomic_write(path) as scratch:
        scratch.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's warnings, which are about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
