"""The trained captioner: one safetensors file with all that captioning needs besides the CNN."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.captions.tokenizer import TOKENIZER
from pipeline.captions.vocabulary import Vocabulary, parse_words
from pipeline.decoders.decoder import Decoder, DecoderConfig
from pipeline.decoders.registry import build_decoder
from pipeline.features.recipe import FeatureRecipe
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.tensors import read_tensors, write_tensors

FORMAT = 6
MOST_WORDS = 1000  # of a caption: what a file claims costs a search its memory


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder, its words, and what it learned from."""

    decoder: Decoder
    vocabulary: Vocabulary
    recipe: FeatureRecipe
    split_digest: str  # of the split that it learned from
    max_length: int  # words of a caption at the most, by the captions that it learned from


def write_model(path: Path, model: TrainedDecoder) -> None:
    header = {
        "format": FORMAT,
        "tokenizer": TOKENIZER,
        "decoder": model.decoder.config.to_json(),
        "features": model.recipe.to_json(),
        "split_digest": model.split_digest,
        "max_length": model.max_length,
        "vocabulary": list(model.vocabulary.words),
    }
    write_tensors(path, model.decoder.state_dict(), header)


def read_model(path: Path, device: torch.device) -> TrainedDecoder:
    """A model ready to caption, in eval mode on `device`.

    Raises:
        InputError: the file is absent, damaged, or no model of this version.
    """
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ArtifactError(path, "is not a captioning model of this version")
    split_digest, max_length = header.get("split_digest"), header.get("max_length")
    if not (
        isinstance(split_digest, str)
        and isinstance(max_length, int)
        and 1 <= max_length <= MOST_WORDS
    ):
        raise ArtifactError(path, "does not say what it was trained on")
    vocabulary = parse_words(header.get("vocabulary"), where=str(path))
    recipe = FeatureRecipe.from_json(header.get("features"), where=str(path))
    try:
        config = DecoderConfig(**header["decoder"])
        if config.vocabulary_size != len(vocabulary):
            raise ValueError(f"{config.vocabulary_size} outputs for {len(vocabulary)} words")
        if config.num_layers > len(tensors):  # each has some; to build millions takes minutes
            raise ValueError(f"{len(tensors)} tensors for {config.num_layers} layers")
        with torch.device("meta"):  # no memory for what a header merely claims
            claimed = build_decoder(config).state_dict()
        if {name: one.shape for name, one in claimed.items()} != {
            name: one.shape for name, one in tensors.items()
        }:
            raise ValueError("other tensors")
        decoder = build_decoder(config)
        decoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(path, f"has weights that do not fit its config ({error})") from None
    return TrainedDecoder(decoder.to(device).eval(), vocabulary, recipe, split_digest, max_length)


def require_same_split(model: TrainedDecoder, split_digest: str, where: str) -> None:
    """
    Raises:
        InputError: the model learned from another split, perhaps from the images of this test.
    """
    if model.split_digest != split_digest:
        raise InputError(
            f"{where} learned from another split of the images than that of the captions table; "
            "train it again on this one"
        )
