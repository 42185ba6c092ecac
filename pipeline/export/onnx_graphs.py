"""Export a captioner as three ONNX graphs: what `onnx_captioner.py` runs without torch.

encoder.onnx: preprocessed images -> features; memory.onnx: features -> the state before the first
token; step.onnx: tokens and the state -> log-probabilities and the next state. All take batches of
any size. P images, k beams per image, V words.
"""

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
_BATCH = torch.export.Dim("images")
_BEAMS = torch.export.Dim("beams")


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
    sizes = [view.preprocessing.size for view in recipe.views]
    encoder = Encoder(backbones, recipe, CPU)
    # Two images and three beams: the exporter would take a size of 1 for a constant.
    images = [torch.zeros(2, size, size, 3, dtype=torch.uint8) for size in sizes]
    with torch.inference_mode():
        features = encoder(*images)
        state = decoder.init_state(features)
    memory = [f"memory_{i}" for i in range(len(state.memory))]
    hidden = [f"hidden_{i}" for i in range(len(state.hidden))]
    _export(
        out / "encoder.onnx",
        encoder,
        {f"images_{i}": (view, {0: _BATCH}) for i, view in enumerate(images)},
        ["features"],
    )
    _export(
        out / "memory.onnx",
        _Memory(decoder),
        {"features": (features, {0: _BATCH})},
        [*memory, *hidden],
    )
    tokens = torch.ones(2, 3, dtype=torch.int64)
    inputs: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "token_ids": (tokens, {0: _BATCH, 1: _BEAMS})
    }
    inputs |= {name: (t, {0: _BATCH}) for name, t in zip(memory, state.memory, strict=True)}
    for name, tensor in zip(hidden, state.hidden, strict=True):
        inputs[name] = _beams_of(tensor)
    next_hidden = [f"next_{name}" for name in hidden]
    _export(out / "step.onnx", _Step(decoder, len(memory)), inputs, ["log_probs", *next_hidden])
    views = [view.preprocessing for view in recipe.views]
    settings = {name: getattr(search, name) for name in _SEARCH}
    content = {
        "format": FORMAT,
        "crop_mode": recipe.crop_mode,
        "views": [{key: asdict(pre)[key] for key in _PREPROCESSING} for pre in views],
        "memory": memory,
        "hidden": hidden,
        "search": settings,
        "vocabulary": list(vocabulary.words),
    }
    write_json(out / "onnx.json", content)
    copy_file(RUNNER, out / RUNNER.name)


# What the graphs do not hold themselves.
_PREPROCESSING = ("resize", "size", "interpolation")
_SEARCH = ("beam_size", "length_penalty", "max_length", "no_repeat_ngram_size", "allow_unk")


def _beams_of(hidden: Tensor) -> tuple[Tensor, dict[int, Any]]:
    """An example (P, k, …) of a hidden tensor (P, …), and its dynamic dimensions."""
    dynamic: dict[int, Any] = {0: _BATCH, 1: _BEAMS}
    example = hidden.unsqueeze(1).repeat_interleave(3, dim=1)
    if example.shape[2] == 0:  # a transformer's tokens so far
        example = example.new_zeros(*example.shape[:2], 2, *example.shape[3:])
        dynamic[2] = torch.export.Dim("tokens")
    return example, dynamic


class _DecoderGraph(nn.Module):
    """A decoder, or the members of an ensemble, with its weights."""

    def __init__(self, decoder: StepDecoder) -> None:
        super().__init__()
        members = getattr(decoder, "members", [decoder])
        self.members = nn.ModuleList(members)
        self.decoder = decoder
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


def _require_onnx() -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(
            "an export as ONNX needs the packages onnx and onnxscript; run: pip install "
            "'showtell[onnx]'"
        ) from None


def _export(
    path: Path,
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, Any]]],
    outputs: list[str],
) -> None:
    """Write one graph; of the same module always the same bytes.

    Args:
        inputs: an example and the dynamic dimensions of each, by name.
    """
    examples = tuple(example for example, _ in inputs.values())
    dynamic = [shape for _, shape in inputs.values()]
    shapes = (dynamic[0], tuple(dynamic[1:])) if isinstance(module, _Step) else tuple(dynamic)
    shapes = (tuple(dynamic),) if isinstance(module, Encoder) else shapes
    with _quietly(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            examples,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.producer_version = ""
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
