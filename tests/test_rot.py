"""Files that rot, are cut, mistaken for one another or come from elsewhere.

Whatever is done to an artifact, the stage that reads it says so in one line, or its result is the
one of the whole file; never another score.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Artifacts, command, make_tiny, make_world, one_line, write_params

# The inputs of every stage but `download`, by option; what stands for it in `Artifacts`.
INPUTS: dict[str, dict[str, str]] = {
    "captions": {"text": "text"},
    "extract": {"images": "images", "weights": "backbone"},
    "vocab": {"table": "table", "summary": "summary"},
    "train": {
        **{"features": "features", "table": "table", "summary": "summary"},
        "vocabulary": "vocabulary",
    },
    "scst": {
        **{"trained": "trained", "features": "features"},
        **{"table": "table", "summary": "summary"},
    },
    "evaluate": {
        **{"model": "model", "features": "features"},
        **{"table": "table", "summary": "summary"},
    },
    "report": {
        **{"images": "images", "model": "model"},
        **{name: name for name in ("captions", "references", "scores", "lengths", "metrics")},
        **{"history": "history", "scst": "scst"},
    },
}
OUTS: dict[str, dict[str, str]] = {
    "captions": {"table": "captions.csv", "summary": "captions.json"},
    "extract": {"out": "features.h5"},
    "vocab": {"out": "vocabulary.json"},
    "train": {"out": "model", "history": "history.csv"},
    "scst": {"out": "model", "history": "scst.csv"},
    "evaluate": {
        **{"captions": "captions.json", "references": "references.json", "scores": "scores.csv"},
        **{"lengths": "lengths.csv", "metrics": "metrics.json"},
    },
    "report": {"out": "report.html"},
}
REPORTS = {
    **{"captions": "captions.json", "references": "references.json", "scores": "scores.csv"},
    **{"lengths": "lengths.csv", "metrics": "metrics.json"},
    **{"history": "history.csv", "scst": "scst.csv"},
}
READ = [(stage, option) for stage, options in INPUTS.items() for option in options]


def path_of(made: Artifacts, name: str) -> Path:
    if name in REPORTS:
        return made.reports / REPORTS[name]
    path = getattr(made, name)
    assert isinstance(path, Path)
    return path


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return bytes(
        [*content[:place], content[place] ^ (1 << rng.randrange(8)), *content[place + 1 :]]
    )


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def blank(content: bytes, rng: random.Random) -> bytes:
    """A block of the disk that came back as zeros."""
    begin = rng.randrange(len(content))
    end = min(len(content), begin + 512)
    return content[:begin] + bytes(end - begin) + content[end:]


def turned(content: bytes, rng: random.Random) -> bytes:
    """Two neighbouring bytes have changed places."""
    place = rng.randrange(len(content) - 1)
    return content[:place] + content[place : place + 2][::-1] + content[place + 2 :]


def nothing(content: bytes, rng: random.Random) -> bytes:
    return b""


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, flip, cut, blank, turned, nothing),
)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """What another data set's stages made: the like of every artifact, and none of them fits."""
    return make_tiny(make_world(tmp_path_factory.mktemp("other"), seed=2))


@pytest.fixture(scope="module")
def whole(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """What every stage makes of whole files."""
    folder = tmp_path_factory.mktemp("whole")
    return {stage: run(tiny, stage, folder / stage)[1] for stage in INPUTS}


def run(
    made: Artifacts, stage: str, folder: Path, **changed: Path
) -> tuple[str | None, list[bytes]]:
    """The line that a stage ends with, if it fails, and what it has made."""
    folder.mkdir()
    params = write_params(folder / "params.yaml")
    words: list[object] = [stage, "--params", params]
    for option, name in INPUTS[stage].items():
        words += [f"--{option}", changed.get(option, path_of(made, name))]
    outs = [folder / name for name in OUTS[stage].values()]
    for option, out in zip(OUTS[stage], outs, strict=True):
        words += [f"--{option}", out]
    done = command(*words)
    line = one_line(done) if done.returncode else None
    return line, [out.read_bytes() for out in outs if out.exists()]


@pytest.mark.parametrize(("stage", "option"), READ)
def test_damage_is_said_or_does_no_harm(
    tiny: Artifacts, whole: dict[str, list[bytes]], tmp_path: Path, stage: str, option: str
) -> None:
    rng = random.Random(f"{stage} {option}")
    source = path_of(tiny, INPUTS[stage][option])
    for number, damage in enumerate(DAMAGE):
        broken = tmp_path / f"{number}-{source.name}"
        broken.write_bytes(damage(source.read_bytes(), rng))
        line, made = run(tiny, stage, tmp_path / f"{number}", **{option: broken})
        if line is None and (stage, option) not in PARAM_GROUPS:
            assert made == whole[stage], f"{damage.__name__} of {source.name} changed the result"
        elif line is not None:
            assert not made, f"{damage.__name__} of {source.name}: {line}"


# Curves and lengths are drawn as they stand in git, and of the model only the digest is shown: no
# score is read from them.
PARAM_GROUPS = [("report", name) for name in ("history", "scst", "lengths", "model")]


@pytest.mark.parametrize(("stage", "option"), READ)
def test_a_file_in_the_place_of_another_is_said(
    tiny: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    own = path_of(tiny, INPUTS[stage][option])
    others = [
        *(tiny.images, tiny.text, tiny.backbone, tiny.features, tiny.table, tiny.summary),
        *(tiny.vocabulary, tiny.model, tiny.params, tiny.history),
    ]
    for number, wrong in enumerate(random.Random(f"{stage} {option}").sample(others, k=2)):
        same_kind = {own, wrong} <= {tiny.model, tiny.trained}
        if wrong == own or same_kind or wrong.read_bytes() == own.read_bytes():
            continue
        taken = tmp_path / f"{number}-{own.name}"
        shutil.copyfile(wrong, taken)
        line, made = run(tiny, stage, tmp_path / f"{number}", **{option: taken})
        # The report takes any file as the model, of which it shows the digest.
        if (stage, option) != ("report", "model"):
            assert line is not None, f"{wrong.name} was taken for {own.name}"
            assert not made


@pytest.mark.parametrize(("stage", "option"), READ)
def test_a_folder_in_the_place_of_a_file_is_said(
    tiny: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    (tmp_path / "folder").mkdir()
    line, made = run(tiny, stage, tmp_path / "out", **{option: tmp_path / "folder"})
    assert line is not None
    assert not made


# What tells that it is of another run: the images' names, the table's digest, the split's.
SWAPPED = [
    ("vocab", "summary"),
    *(("train", name) for name in ("features", "table", "summary", "vocabulary")),
    *(("scst", name) for name in ("trained", "features", "table", "summary")),
    *(("evaluate", name) for name in ("model", "features", "table", "summary")),
    *(("report", name) for name in ("images", "captions", "references", "scores", "metrics")),
]


@pytest.mark.parametrize(("stage", "option"), SWAPPED)
def test_the_like_of_it_from_another_run_is_said(
    tiny: Artifacts, other: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    theirs = path_of(other, INPUTS[stage][option])
    line, made = run(tiny, stage, tmp_path / "out", **{option: theirs})
    assert line is not None
    assert not made
