"""Files that rot, are cut, mistaken for one another or come from elsewhere.

Whatever is done to an artifact, the stage that reads it says so in one line, or its result is the
one of the whole file; never another score.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.reports import ReportFiles
from tests.conftest import Artifacts, command, make_tiny, make_world, one_line, write_params

# The inputs of every stage but `download` and `backbone`: what stands for each in `Artifacts`, and
# the option that names it, or the folder that it lies in.
TABLE = {"table": "captions", "info": "captions"}
INPUTS: dict[str, dict[str, str]] = {
    "prepare": {"text": "text"},
    "extract": {"images": "images", "backbone": "backbone"},
    "vocab": {**TABLE},
    "train": {"features": "features", **TABLE, "vocabulary": "vocabulary"},
    "scst": {"trained": "trained", "features": "features", **TABLE},
    "evaluate": {"model": "model", "features": "features", **TABLE},
    "report": {
        **{"images": "images", "model": "model"},
        **dict.fromkeys(("captions", "references", "scores", "lengths"), "reports-dir"),
        **dict.fromkeys(("metrics", "history", "scst"), "reports-dir"),
    },
}
OUTS: dict[str, dict[str, str]] = {
    "prepare": {"captions": "captions.csv"},
    "extract": {"out": "features.h5"},
    "vocab": {"out": "vocabulary.json"},
    "train": {"out": "model", "history": "history.csv"},
    "scst": {"out": "model", "history": "scst.csv"},
    "evaluate": {"out-dir": "reports"},
    "report": {"out": "report.html"},
}
READ = [(stage, name) for stage, names in INPUTS.items() for name in names]


def path_of(made: Artifacts, stage: str, name: str) -> Path:
    if INPUTS[stage][name] == "reports-dir":
        path = getattr(ReportFiles.in_folder(made.reports), name)
    else:
        path = made.table.with_suffix(".json") if name == "info" else getattr(made, name)
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
    options: dict[str, Path] = {"params": params}
    for name, option in INPUTS[stage].items():
        source = path_of(made, stage, name)
        given = changed.get(name, source)
        if option in ("captions", "reports-dir"):  # the files of a folder
            placed = folder / "inputs" / source.name
            placed.parent.mkdir(exist_ok=True)
            copy = shutil.copytree if given.is_dir() else shutil.copyfile
            copy(given, placed)
            given = placed.with_suffix(".csv") if option == "captions" else placed.parent
        options[option] = given
    outs = {option: folder / name for option, name in OUTS[stage].items()}
    words = [word for item in (options | outs).items() for word in (f"--{item[0]}", item[1])]
    done = command(stage, *words)
    line = one_line(done) if done.returncode else None
    files = [file for out in outs.values() for file in sorted(out.glob("*")) or [out]]
    return line, [file.read_bytes() for file in files if file.is_file()]


@pytest.mark.parametrize(("stage", "option"), READ)
def test_damage_is_said_or_does_no_harm(
    tiny: Artifacts, whole: dict[str, list[bytes]], tmp_path: Path, stage: str, option: str
) -> None:
    rng = random.Random(f"{stage} {option}")
    source = path_of(tiny, stage, option)
    for number, damage in enumerate(DAMAGE):
        broken = tmp_path / f"{number}-{source.name}"
        broken.write_bytes(damage(source.read_bytes(), rng))
        line, made = run(tiny, stage, tmp_path / f"{number}", **{option: broken})
        if line is None and (stage, option) not in UNREAD:
            assert made == whole[stage], f"{damage.__name__} of {source.name} changed the result"
        elif line is not None:
            assert not made, f"{damage.__name__} of {source.name}: {line}"


# Curves and lengths are drawn as they stand in git, and of the model only the digest is shown: no
# score is read from them.
UNREAD = [("report", name) for name in ("history", "scst", "lengths", "model")]


@pytest.mark.parametrize(("stage", "option"), READ)
def test_a_file_in_the_place_of_another_is_said(
    tiny: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    own = path_of(tiny, stage, option)
    others = [
        *(tiny.images, tiny.text, tiny.backbone, tiny.features, tiny.table),
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
    ("vocab", "info"),
    *(("train", name) for name in ("features", "table", "info", "vocabulary")),
    *(("scst", name) for name in ("trained", "features", "table", "info")),
    *(("evaluate", name) for name in ("model", "features", "table", "info")),
    *(("report", name) for name in ("images", "captions", "references", "scores", "metrics")),
]


@pytest.mark.parametrize(("stage", "option"), SWAPPED)
def test_the_like_of_it_from_another_run_is_said(
    tiny: Artifacts, other: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    theirs = path_of(other, stage, option)
    line, made = run(tiny, stage, tmp_path / "out", **{option: theirs})
    assert line is not None
    assert not made
