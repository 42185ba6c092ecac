"""What the API answers, as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.decoders.decoder import Decoder
from pipeline.extraction.preprocess import resize_and_crop_box
from pipeline.serving.settings import PARAMETERS
from pipeline.serving.upload import TYPES, Limits

MAX_CARD = 64 << 10  # bytes of a model card's text


def describe_caption(
    caption: Caption, size: tuple[int, int], captioner: Captioner
) -> dict[str, Any]:
    """
    Args:
        size: the image's width and height.
    """
    tokens: list[dict[str, Any]] = [
        {"token": token, "probability": round(probability, 4)}
        for token, probability in zip(caption.tokens, caption.token_probs, strict=True)
    ]
    if caption.attention is not None:
        for token, grid in zip(tokens, caption.attention, strict=True):
            token["attention"] = [[round(float(cell), 4) for cell in row] for row in grid]
    return {
        **_summary(caption),
        "tokens": tokens,
        "alternatives": [_summary(other) for other in caption.alternatives],
        "image": {"width": size[0], "height": size[1], "seen": seen_box(size, captioner)},
    }


def _summary(caption: Caption) -> dict[str, Any]:
    return {
        "caption": caption.text,
        "confidence": None if caption.confidence is None else round(caption.confidence, 4),
        "score": None if caption.score is None else round(caption.score, 4),
    }


def seen_box(size: tuple[int, int], captioner: Captioner) -> list[float]:
    """The part of the image that the model sees, and attention covers: left, top, width and height
    as fractions of the image's."""
    recipe = captioner.recipe
    pre = recipe.views[0].preprocessing
    width, height = size
    (tall, wide), top, left = resize_and_crop_box(height, width, pre, recipe.crop_mode)
    return [
        round(value, 4) for value in (left / wide, top / tall, pre.size / wide, pre.size / tall)
    ]


def describe_model(captioner: Captioner, folder: Path, limits: Limits) -> dict[str, Any]:
    """The model card: what the page shows, and what a client may ask for."""
    decoder, fitted = captioner.decoder, captioner.confidence
    return {
        "name": folder.resolve().name,
        "version": __version__,
        "backbone": captioner.recipe.label,
        "decoder": decoder.config.decoder if isinstance(decoder, Decoder) else "ensemble",
        "vocabulary_size": len(captioner.vocabulary),
        "max_length": captioner.max_length,
        "search": asdict(captioner.search),
        "attention": captioner.has_attention,
        "confidence": fitted
        and {
            "reference": fitted.reference,
            "threshold": round(fitted.threshold, 1),
            "images": fitted.images,
        },
        "limits": {
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
            "types": list(TYPES),
            **{name: one.maximum for name, one in PARAMETERS.items() if one.kind is not bool},
        },
        "card": _read_card(folder / "README.md"),
    }


def _read_card(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(MAX_CARD).decode("utf-8", errors="replace")
