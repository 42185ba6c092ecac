"""The images of the page, with their captions, references and scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.evaluation.reports import CONFIDENCE, Evaluation
from pipeline.report.render import json_for_script
from pipeline.report.thumbnails import Thumbnail

DECIMALS = 2  # of an image's scores


@dataclass(frozen=True)
class CaptionedImage:
    """An image of the split with its caption and scores x100."""

    image_id: str
    caption: str
    references: Sequence[str]
    cider: float
    rouge_l: float
    words: int
    confidence: float | None = None  # None: the model was not calibrated


def captioned_images(evaluation: Evaluation) -> list[CaptionedImage]:
    """Return the images in the order of the captions."""
    table = evaluation.scores
    rows = table[["cider", "rouge_l", "words"]].itertuples()
    confidences = table[CONFIDENCE].tolist() if CONFIDENCE in table else [None] * len(table)
    captions, references = evaluation.captions, evaluation.references
    return [
        CaptionedImage(key, captions[key], references[key], cider, rouge_l, words, confidence)
        for (key, cider, rouge_l, words), confidence in zip(rows, confidences, strict=True)
    ]


def pick_evenly(images: Sequence[CaptionedImage], most: int) -> list[CaptionedImage]:
    """Return all images, or `most` at even ranks of CIDEr from the worst to the best."""
    if len(images) <= most:
        return list(images)
    ranked = sorted(range(len(images)), key=lambda i: images[i].cider)
    last = len(images) - 1
    kept = {ranked[round(i * last / max(most - 1, 1))] for i in range(most)}
    return [images[i] for i in sorted(kept)]


def images_json(images: Sequence[CaptionedImage], thumbnails: Iterator[Thumbnail]) -> str:
    """Return the gallery's data: a list per image, as `page.js` unpacks it."""
    return json_for_script(
        [
            [
                image.image_id,
                image.caption,
                list(image.references),
                round(image.cider, DECIMALS),
                round(image.rouge_l, DECIMALS),
                image.words,
                *thumbnail,
                None if image.confidence is None else round(image.confidence, DECIMALS),
            ]
            for image, thumbnail in zip(images, thumbnails, strict=True)
        ]
    )
