"""Confidence: the probability that a caption is as good as a typical person's."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import showtell
from pipeline.captions.vocabulary import END
from pipeline.evaluation.confidence import fit_confidence, read_confidence, write_confidence
from pipeline.evaluation.reliability import reliability, reliability_bins
from pipeline.evaluation.reports import ReportFiles, read_evaluation
from pipeline.generation.beam_search import BeamSearchConfig, Hypothesis
from pipeline.runtime.errors import ArtifactError, InputError
from pipeline.runtime.files import json_digest
from tests.conftest import Artifacts, command

SEARCH = BeamSearchConfig(5, 1.0)


def found(log_prob: float, length: int = 6) -> Hypothesis:
    return Hypothesis([END + 5] * length, log_prob, [log_prob] * (length + 1))


def split(sure: list[float], right: list[bool]) -> tuple[list[Hypothesis], list, list]:
    """Captions of these mean log-probabilities, which are what people say or are not."""
    references, captions = [], []
    for number, good in enumerate(right):
        first = f"a red square with the number {number} on it".split()
        references.append([first, f"the number {number} on a red square".split()])
        captions.append(first if good else "some other words that nobody said".split())
    return [found(one) for one in sure], captions, references


def test_what_is_likelier_to_be_right_has_the_higher_confidence() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(-3, -0.1, 400).tolist()
    right = (rng.random(400) < 1 / (1 + np.exp(-2 * (np.array(sure) + 1.5)))).tolist()
    confidence = fit_confidence(*split(sure, right), ["model"], SEARCH)
    values = [confidence(found(log_prob)) for log_prob in (-2.5, -1.5, -0.5)]
    assert values == pytest.approx([1 / (1 + math.exp(-x)) for x in (-2, 0, 2)], abs=0.1)


@pytest.mark.parametrize("right", [False, True])
def test_what_never_failed_or_never_came_true_is_not_certain(right: bool) -> None:
    sure = [-1.0] * 10
    confidence = fit_confidence(*split(sure, [right] * 10), ["model"], SEARCH)
    assert confidence(found(-1.0)) == pytest.approx(11 / 12 if right else 1 / 12, abs=1e-3)


def test_without_human_scores_the_models_own_captions_are_the_measure() -> None:
    captions, tokens, references = split([-1.0, -2.0, -0.5], [True, False, True])
    single = [refs[:1] for refs in references]
    confidence = fit_confidence(captions, tokens, single, ["model"], SEARCH)
    assert confidence.reference == "model"
    assert confidence(found(-0.5)) > confidence(found(-2.0))


def test_reliability_compares_what_was_predicted_with_what_came_true() -> None:
    confidences, cider = [0.05, 0.15, 0.85, 0.95], [10.0, 20.0, 90.0, 95.0]
    fit = reliability(confidences, [-4.0, -3.0, -2.0, -1.0], cider, 50.0, "human")
    assert (fit.mean, fit.reached) == (0.5, 0.5)
    assert fit.calibration_error == pytest.approx(0.1)
    assert fit.correlation == fit.log_prob_correlation == pytest.approx(1)
    assert reliability_bins([1.0, 0.95, 0.2], [True, False, False]) == [
        (pytest.approx(0.2), 0.0, 1),
        (pytest.approx(0.975), 0.5, 2),
    ]


def test_a_calibration_is_read_as_it_was_written_and_refused_if_it_is_not_one(
    tiny: Artifacts, tmp_path: Path
) -> None:
    confidence = read_confidence(tiny.confidence)
    write_confidence(tmp_path / "again.json", confidence)
    assert (tmp_path / "again.json").read_bytes() == tiny.confidence.read_bytes()
    content = asdict(confidence)
    for change in (
        {"search": content["search"] | {"beam_size": 10**9}},
        {"weights": [0.0, math.inf, 0.0]},
        {"threshold": "high"},
    ):
        wrong = content | change
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps(wrong | {"digest": json_digest(wrong)}))
        with pytest.raises(
            ArtifactError, match=r"wrong\.json (is not a calibration|has no valid search)"
        ):
            read_confidence(path)


def test_evaluation_the_page_the_library_and_the_command_show_it(
    tiny: Artifacts, tmp_path: Path
) -> None:
    evaluation = read_evaluation(*ReportFiles.in_folder(tiny.reports).evaluation)
    assert evaluation.metrics.confidence
    assert evaluation.metrics.confidence.mean == pytest.approx(
        evaluation.scores["confidence"].mean(), abs=1e-3
    )
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    caption = captioner.caption(photo)
    assert 0 < (caption.confidence or 0) < 1
    options = ("--model", tiny.folder / "models", "--device", "cpu")
    line = command("caption", photo, *options).stdout.rstrip("\n")
    assert line.split("\t")[1:] == [caption.text, f"{caption.confidence:.2f}"]
    row = json.loads(command("caption", photo, *options, "--format", "jsonl").stdout)
    assert row["confidence"] == pytest.approx(caption.confidence, abs=1e-4)


def test_another_models_calibration_is_not_used(tiny: Artifacts, tmp_path: Path) -> None:
    for path in (tiny.model, tiny.backbone):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = replace(read_confidence(tiny.confidence), models=("0123456789abcdef",))
    write_confidence(tmp_path / "confidence.json", other)
    captioner = showtell.load(tmp_path, device="cpu")
    assert captioner.confidence is None


def test_alternatives_need_beams_and_attention_a_grid(tiny: Artifacts) -> None:
    captioner = showtell.load(tiny.folder / "models", device="cpu")
    image = np.zeros((60, 80, 3), np.uint8)
    search = replace(captioner.search, beam_size=4)
    caption = captioner.caption(image, search, alternatives=3)
    texts = [caption.text, *(other.text for other in caption.alternatives)]
    assert len(texts) == len(set(texts)) == 4
    scores = [caption.score, *(other.score for other in caption.alternatives)]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InputError, match="4 alternatives need a beam of 5 or more, not 4"):
        captioner.caption(image, search, alternatives=4)
    with pytest.raises(InputError, match="no attention over a grid"):
        captioner.caption(image, attention=True)
