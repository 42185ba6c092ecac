"""Reports of a run that was never made, as the stages would write them: any captions, any ids."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.evaluation.diversity import diversity_stats
from pipeline.evaluation.reports import (
    ReportFiles,
    write_captions,
    write_lengths,
    write_metrics,
    write_references,
    write_scores,
)
from pipeline.metrics.bleu import COUNT_NAMES, add_ngram_totals, bleu_from_counts
from pipeline.metrics.registry import SCORE_NAMES
from pipeline.metrics.scores import bleu_counts
from tests.conftest import make_zip


@dataclass(frozen=True)
class Said:
    """An image with what is said of it."""

    image_id: str
    caption: str
    references: Sequence[str]
    cider: float
    rouge_l: float


def photo(seed: int, width: int = 250, height: int = 188) -> bytes:
    """A JPEG about as hard to compress as a photograph: noise on every scale."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (3, 8, 20, 60):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(fine) / 4
    content = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


@dataclass(frozen=True)
class Run:
    """What `showtell report` takes."""

    images: Path
    models: Sequence[Path]
    reports: ReportFiles
    base: Path | None = None


def write_run(folder: Path, said: Sequence[Said], photos: int = 8) -> Run:
    """The reports, an archive of the images and a model that is none, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder / "images.zip", [folder / "captioner.safetensors"], ReportFiles(folder))
    reports = run.reports
    ids = [one.image_id for one in said]
    captions = [one.caption.split() for one in said]
    references = [[ref.split() for ref in one.references] for one in said]
    counts = bleu_counts(captions, references)
    columns = {
        "cider": [round(one.cider, 4) for one in said],
        "rouge_l": [round(one.rouge_l, 4) for one in said],
    }
    whole = [
        *bleu_from_counts(add_ngram_totals(counts).sum(axis=0)).tolist(),
        *(float(np.mean(values)) for values in columns.values()),
    ]
    scores = dict(zip(SCORE_NAMES, whole, strict=True))
    write_captions(reports.captions, ids, captions)
    write_references(reports.references, ids, references)
    counted = dict(zip(COUNT_NAMES, counts.T, strict=True))
    write_scores(reports.scores, {"image_id": ids, **columns, **counted})
    write_lengths(reports.lengths, captions, references)
    half = {name: value / 2 for name, value in scores.items()}
    write_metrics(
        reports.metrics,
        {
            **scores,
            **diversity_stats(captions),
            "split": "test (official)",
            "baselines": [
                {"name": "constant", "caption": said[0].caption, **half},
                {"name": "human", **{name: 1.2 * value for name, value in scores.items()}},
            ],
            "meta": [{"split_digest": "0123456789abcdef", "features": "a CNN", "models": 1}],
        },
        beside=[reports.captions, reports.references, reports.scores],
    )
    reports.history.write_text(
        "epoch,learning_rate,train_loss,val_loss,bleu_4,cider\n"
        "1,0.002,5.1,3.6,8,18\n2,0.001,4.0,3.2,12.5,28\n3,0.0001,3.8,3.1,12,27\n"
    )
    reports.scst.write_text(
        "epoch,reward,cross_entropy,bleu_4,cider\n0,,,12.5,28\n1,49,2.5,13,31.5\n"
    )
    jpegs = [photo(seed) for seed in range(photos)]
    make_zip(run.images, {one: jpegs[i % photos] for i, one in enumerate(ids)})
    run.models[0].write_bytes(b"model")
    return run
