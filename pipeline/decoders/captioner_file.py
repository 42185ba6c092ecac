"""The trained decoder's file: weights, vocabulary and feature recipe, in one safetensors."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.captions.tokenizer import TOKENIZER
from pipeline.captions.vocabulary import Vocabulary, parse_words
from pipeline.decoders.decoder import Decoder, DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.tensors import read_tensors, write_tensors

FORMAT = 7
MAX_LENGTH = 1000  # of a caption: a search reserves what a file claims


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder, its vocabulary, and what it was trained on."""

    decoder: Decoder
    vocabulary: Vocabulary
    recipe: FeatureRecipe
    split_digest: str  # of the split that it was trained on
    max_length: int  # of its captions, in tokens


def write_model(path: Path, model: TrainedDecoder) -> None:
    header = {
        "format": FORMAT,
        "tokenizer": TOKENIZER,
        "decoder": asdict(model.decoder.config),
        "features": asdict(model.recipe),
        "split_digest": model.split_digest,
        "max_length": model.max_length,
        "vocabulary": list(model.vocabulary.words),
    }
    write_tensors(path, model.decoder.state_dict(), header)


def read_model(path: Path, device: torch.device) -> TrainedDecoder:
    """Read a model, in eval mode on `device`.

    Raises:
        ArtifactError: the file is missing, damaged, or not a model of this version.
    """
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ArtifactError(path, "is not a captioning model of this version")
    split_digest, max_length = header.get("split_digest"), header.get("max_length")
    if not (
        isinstance(split_digest, str)
        and isinstance(max_length, int)
        and 1 <= max_length <= MAX_LENGTH
    ):
        raise ArtifactError(path, "does not say what it was trained on")
    vocabulary = parse_words(header.get("vocabulary"), where=str(path))
    recipe = FeatureRecipe.from_json(header.get("features"), where=str(path))
    try:
        config = DecoderConfig(**header["decoder"])
        if config.vocabulary_size != len(vocabulary):
            raise ValueError(f"{config.vocabulary_size} outputs for {len(vocabulary)} tokens")
        if config.num_layers > len(tensors):  # building millions takes minutes
            raise ValueError(f"{len(tensors)} tensors for {config.num_layers} layers")
        with torch.device("meta"):  # allocates nothing for what the header claims
            expected = build_decoder(config).state_dict()
        ours, given = ({k: t.shape for k, t in part.items()} for part in (expected, tensors))
        if ours != given:
            raise ValueError("names or shapes differ")
        decoder = build_decoder(config)
        decoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(path, f"has weights that do not fit its config ({error})") from None
    return TrainedDecoder(decoder.to(device).eval(), vocabulary, recipe, split_digest, max_length)


def require_same_split(model: TrainedDecoder, split_digest: str, where: str) -> None:
    """Raise an InputError unless the model was trained on this split: otherwise it may have been
    trained on test images."""
    if model.split_digest != split_digest:
        raise InputError(
            f"{where} was trained on another split than that of the captions table; "
            "train it again on this one"
        )
