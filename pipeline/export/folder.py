"""Write a captioner to a folder that can be shared: weights, config and model card."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from pipeline import __version__
from pipeline.backbones.weights import read_backbones
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.files import BACKBONE, CONFIG, EXPORTED_MODEL, NEIGHBORS
from pipeline.captioning.folder import FORMAT, load_folder
from pipeline.captioning.photos import find_photos
from pipeline.decoders.captioner_file import read_model
from pipeline.evaluation.confidence import model_digests
from pipeline.evaluation.reports import ReportFiles, read_evaluation
from pipeline.export.model_card import NUM_EXAMPLES, CardDetails, Example, render_card
from pipeline.export.onnx_graphs import export_onnx, require_exportable
from pipeline.images.decode import load_image
from pipeline.runtime.errors import ArtifactError, InputError, pluralize
from pipeline.runtime.files import atomic_write, copy_file, file_digest, write_checked_json

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
CARD = "README.md"
EXAMPLE_SIZE, JPEG_QUALITY = 320, 85  # of an example in the card; pixels of the longer side


def export(
    model: Path,
    backbone: Path,
    confidence: Path,
    reports: ReportFiles,
    out: Path,
    details: CardDetails,
    photos: Sequence[str] = (),
    onnx: bool = False,
) -> None:
    """Write the captioner to `out`; written again, it has the same bytes.

    Args:
        reports: of this model's evaluation, for the card.
        photos: images that may be shown, for the card.
        onnx: also write graphs that run without torch.

    Raises:
        InputError: an input cannot be used, the reports are not this model's, or `out` is a folder
            of something else.
    """
    if out.exists() and not (out / CONFIG).exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty, and not an exported captioner; name another folder")
    trained, evaluation = read_model(model, CPU), read_evaluation(*reports.evaluation)
    if evaluation.metrics.meta.get("model_digests") != model_digests([trained]):
        raise ArtifactError(reports.metrics, f"is not the evaluation of {model}")
    captioner = Captioner(backbone, [model], CPU, confidence)
    if onnx:
        require_exportable(captioner.search)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)  # without it, a folder is not complete
    copy_file(model, out / EXPORTED_MODEL)
    copy_file(backbone, out / BACKBONE)
    names = [EXPORTED_MODEL, BACKBONE]
    if captioner.search.consensus_weight:
        copy_file(model.with_name(NEIGHBORS), out / NEIGHBORS)
        names.append(NEIGHBORS)
    else:  # training captions are shared only where they are needed
        (out / NEIGHBORS).unlink(missing_ok=True)
    if onnx:
        folder = out / "onnx"
        folder.mkdir(exist_ok=True)
        decoder, words = trained.decoder, trained.vocabulary
        backbones, search = read_backbones(backbone), captioner.search
        export_onnx(folder, backbones, trained.recipe, decoder, words, search)
        names += sorted(str(path.relative_to(out)) for path in folder.iterdir())
    digests = {name: file_digest(out / name, "sha256") for name in names}
    card = render_card(
        details,
        evaluation,
        {
            "features": trained.recipe.label,
            "decoder": trained.decoder.config.decoder,
            "vocabulary_size": len(trained.vocabulary),
        },
        list(digests.items()),
        _draw_examples(captioner, photos, out),
        onnx,
    )
    with atomic_write(out / CARD) as scratch:
        scratch.write_text(card, encoding="utf-8")
    calibration = captioner.confidence
    config = {
        "format": FORMAT,
        "showtell": __version__,
        "files": digests,
        "features": asdict(trained.recipe),
        "decoder": asdict(trained.decoder.config),
        "vocabulary": list(trained.vocabulary.words),
        "search": asdict(captioner.search),
        "confidence": asdict(calibration) if calibration else None,
    }
    write_checked_json(out / CONFIG, config)
    load_folder(out, CPU)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    log.info("%s: %s, %.1f MB", out, pluralize(len(sizes), "file"), sum(sizes) / 1e6)


def _draw_examples(captioner: Captioner, names: Sequence[str], out: Path) -> list[Example]:
    """Caption the first photos of these names, and write them, made smaller, for the card."""
    examples = []
    for number, photo in enumerate(find_photos(names)[:NUM_EXAMPLES], start=1):
        image = load_image(photo.read())
        caption = captioner.caption(image)
        image.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE), Image.Resampling.LANCZOS)
        path = out / "examples" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as scratch:
            image.save(scratch, "JPEG", quality=JPEG_QUALITY)
        sure = "" if caption.confidence is None else f"{caption.confidence:.2f}"
        examples.append(Example(path.relative_to(out).as_posix(), caption.text, sure))
    return examples
