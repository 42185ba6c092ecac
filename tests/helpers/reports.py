"""The reports of an invented run, in the stages' formats, with any captions and image ids."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config.load import load_params
from pipeline.config.schema import ReportConfig
from pipeline.evaluation.diversity import diversity_stats
from pipeline.evaluation.metrics_file import write_metrics
from pipeline.evaluation.reports import (
    ReportFiles,
    write_captions,
    write_lengths,
    write_references,
    write_scores,
)
from pipeline.metrics.bleu import COUNT_NAMES, add_ngram_totals, bleu_from_counts
from pipeline.metrics.registry import SCORE_NAMES
from pipeline.metrics.scores import bleu_counts
from pipeline.stages.report import PARAM_GROUPS, report
from tests.conftest import make_zip, write_params


@dataclass(frozen=True)
class Captioned:
    """An image with its caption, references and scores."""

    image_id: str
    caption: str
    references: Sequence[str]
    cider: float
    rouge_l: float


@dataclass(frozen=True)
class Inputs:
    """The inputs of `showtell report`."""

    images: Path
    models: Sequence[Path]
    reports: ReportFiles
    base: Path | None = None


def some_images(count: int) -> list[Captioned]:
    """Return images 0.jpg, 1.jpg, … with scores 0, 1, …"""
    references = ["a dog runs", "two dogs, ball 3"]
    return [
        Captioned(f"{i}.jpg", f"a dog runs with ball {i}", references, float(i), float(i))
        for i in range(count)
    ]


def meta(images: int, references: float = 5.0) -> dict[str, object]:
    """Return the `meta` of metrics.json."""
    return {
        "scale": 100.0,
        "tokenizer": "ptb-lower-nopunct-3",
        "split_digest": "0123456789abcdef",
        "images": images,
        "references": references,
        "features": "a CNN",
        "models": 1,
        "excluded": {},
    }


def photo(seed: int, width: int = 250, height: int = 188) -> bytes:
    """Return a JPEG about as hard to compress as a photograph: noise at every scale."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for grid_size in (3, 8, 20, 60):
        coarse = rng.integers(0, 256, (grid_size, grid_size, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(fine) / 4
    content = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def write_inputs(folder: Path, images: Sequence[Captioned], photos: int = 8) -> Inputs:
    """Write the reports, an archive of the images and a placeholder for the model."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(
        folder / "images.zip", [folder / "captioner.safetensors"], ReportFiles.in_folder(folder)
    )
    reports = inputs.reports
    ids = [image.image_id for image in images]
    captions = [image.caption.split() for image in images]
    references = [[ref.split() for ref in image.references] for image in images]
    counts = bleu_counts(captions, references)
    columns = {
        "cider": [round(image.cider, 4) for image in images],
        "rouge_l": [round(image.rouge_l, 4) for image in images],
    }
    corpus = [
        *bleu_from_counts(add_ngram_totals(counts).sum(axis=0)).tolist(),
        *(float(np.mean(values)) for values in columns.values()),
    ]
    scores = dict(zip(SCORE_NAMES, corpus, strict=True))
    write_captions(reports.captions, ids, captions)
    write_references(reports.references, ids, references)
    by_name = dict(zip(COUNT_NAMES, counts.T, strict=True))
    write_scores(reports.scores, {"image_id": ids, **columns, **by_name})
    write_lengths(reports.lengths, captions, references)
    half = {name: value / 2 for name, value in scores.items()}
    write_metrics(
        reports.metrics,
        {
            **scores,
            **diversity_stats(captions, references),
            "split": "test (official)",
            "baselines": [
                {"name": "constant", "caption": images[0].caption, **half},
                {"name": "human", **{name: 1.2 * value for name, value in scores.items()}},
            ],
            "meta": [meta(len(images), references=float(len(images[0].references)))],
        },
        reports=[reports.captions, reports.references, reports.scores],
    )
    reports.history.write_text(
        "epoch,learning_rate,train_loss,val_loss,bleu_4,cider\n"
        "1,0.002,5.1,3.6,8,18\n2,0.001,4.0,3.2,12.5,28\n3,0.0001,3.8,3.1,12,27\n"
    )
    reports.scst.write_text(
        "epoch,reward,cross_entropy,bleu_4,cider\n0,,,12.5,28\n1,49,2.5,13,31.5\n"
    )
    jpegs = [photo(seed) for seed in range(photos)]
    make_zip(inputs.images, {image_id: jpegs[i % photos] for i, image_id in enumerate(ids)})
    inputs.models[0].write_bytes(b"model")
    return inputs


def write_report(inputs: Inputs, out: Path, **changes: Any) -> str:
    """Write the page, with the tiny run's params and these of `report`, and return its text."""
    path = write_params(out.parent / "params.yaml", report=changes)
    groups = [load_params(path, group) for group in PARAM_GROUPS]
    config = load_params(path, ReportConfig)
    report(inputs.images, inputs.models, inputs.reports, out, groups, config, inputs.base)
    return out.read_text(encoding="utf-8")


HOSTILE = Captioned(
    image_id='"onerror="hacked=1"><b>.jpg',
    caption='</script><script>hacked=1</script> <img src=x onerror="hacked=1"> & \u2028 '
    + "w" * 200,
    references=["<!-- <script>", "{{ 7 * 7 }}", '" onerror="hacked=1'],
    cider=500.0,
    rouge_l=100.0,
)


def image(number: int) -> Captioned:
    noun = ["dog", "woman", "horse"][number % 3]
    return Captioned(
        image_id=f"{number:04d}_bed.jpg",
        caption=f"a {noun} on the beach" + " today" * (number % 4),
        references=[
            f"one {noun} and sand",
            "waves",
            "a man walks",
            "the sea",
            "a long sandy shore",
        ],
        cider=(number * 7919) % 1000 / 5,
        rouge_l=(number * 104729) % 1000 / 10,
    )


def page_of(folder: Path, num_images: int) -> Path:
    """Write the page of this many images, the first of them hostile."""
    inputs = write_inputs(folder, [HOSTILE, *map(image, range(1, num_images))])
    out = folder / "report.html"
    write_report(replace(inputs, base=inputs.reports.metrics), out)
    return out
