"""Artifacts that are damaged, swapped, or of another run.

The stage that reads such a file reports it in one line, or its result does not change.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.reports import ReportFiles
from tests.conftest import Artifacts, command, make_tiny, make_world, one_line, write_params

# The inputs of every stage but `download` and `backbone`: the attribute of `Artifacts`, and the
# option for the file or its folder.
TABLE = {"table": "captions", "info": "captions"}
INPUTS: dict[str, dict[str, str]] = {
    "prepare": {"text": "text", "images": "images", "unreadable": "unreadable"},
    "extract": {"images": "images", "unreadable": "unreadable", "backbone": "backbone"},
    "vocab": {**TABLE},
    "train": {"features": "features", **TABLE, "vocabulary": "vocabulary"},
    "scst": {"trained": "trained", "features": "features", **TABLE},
    "neighbors": {"features": "features", **TABLE, "vocabulary": "vocabulary"},
    "calibrate": {"model": "model", "features": "features", **TABLE},
    "evaluate": {"model": "model", "confidence": "confidence", "features": "features", **TABLE},
    "report": {
        **{"images": "images", "model": "model"},
        **dict.fromkeys(("captions", "references", "scores", "lengths"), "reports-dir"),
        **dict.fromkeys(("metrics", "history", "scst"), "reports-dir"),
    },
}
OUTS: dict[str, dict[str, str]] = {
    "prepare": {"captions": "captions.csv", "excluded": "excluded.csv"},
    "extract": {"out": "features.h5"},
    "vocab": {"out": "vocabulary.json"},
    "train": {"out": "model", "history": "history.csv"},
    "scst": {"out": "model", "history": "scst.csv"},
    "neighbors": {"out": "neighbors.safetensors"},
    "calibrate": {"out": "confidence.json"},
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


Damage = Callable[[bytes, random.Random], bytes]


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def zero_block(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    end = min(len(content), begin + 512)
    return content[:begin] + bytes(end - begin) + content[end:]


def swap_bytes(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content) - 1)
    return content[:begin] + content[begin : begin + 2][::-1] + content[begin + 2 :]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


DAMAGES: tuple[Damage, ...] = (flip_bit, flip_bit, truncate, zero_block, swap_bytes, empty)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The artifacts of another data set."""
    return make_tiny(make_world(tmp_path_factory.mktemp("other"), seed=2))


@pytest.fixture(scope="module")
def whole(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """The outputs of every stage for intact inputs."""
    folder = tmp_path_factory.mktemp("whole")
    return {stage: run(tiny, stage, folder / stage)[1] for stage in INPUTS}


def run(
    made: Artifacts, stage: str, folder: Path, **changed: Path
) -> tuple[str | None, list[bytes]]:
    """Run a stage; return its error line, if it fails, and its outputs."""
    folder.mkdir()
    params = write_params(folder / "params.yaml")
    options: dict[str, Path] = {} if stage == "neighbors" else {"params": params}
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
def test_damage_is_reported_or_harmless(
    tiny: Artifacts, whole: dict[str, list[bytes]], tmp_path: Path, stage: str, option: str
) -> None:
    rng = random.Random(f"{stage} {option}")
    source = path_of(tiny, stage, option)
    for number, damage in enumerate(DAMAGES):
        damaged = tmp_path / f"{number}-{source.name}"
        damaged.write_bytes(damage(source.read_bytes(), rng))
        line, outs = run(tiny, stage, tmp_path / f"{number}", **{option: damaged})
        if line is None and (stage, option) not in UNVERIFIED:
            assert outs == whole[stage], f"{damage.__name__} of {source.name} changed the result"
        elif line is not None:
            assert not outs, f"{damage.__name__} of {source.name}: {line}"


# The report draws curves and lengths without a check, and shows only the digest of the model.
UNVERIFIED = [("report", name) for name in ("history", "scst", "lengths", "model")]


@pytest.mark.parametrize(("stage", "option"), READ)
def test_a_file_of_another_kind_is_reported(
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
        copy = tmp_path / f"{number}-{own.name}"
        shutil.copyfile(wrong, copy)
        line, outs = run(tiny, stage, tmp_path / f"{number}", **{option: copy})
        # The report accepts any file as the model; it shows only its digest.
        if (stage, option) != ("report", "model"):
            assert line is not None, f"{wrong.name} was accepted as {own.name}"
            assert not outs


@pytest.mark.parametrize(("stage", "option"), READ)
def test_a_folder_instead_of_a_file_is_reported(
    tiny: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    (tmp_path / "folder").mkdir()
    line, outs = run(tiny, stage, tmp_path / "out", **{option: tmp_path / "folder"})
    assert line is not None
    assert not outs


# Inputs with a reference to their run: image ids, or the digest of the table or the split.
SWAPPED = [
    ("vocab", "info"),
    *(("train", name) for name in ("features", "table", "info", "vocabulary")),
    *(("scst", name) for name in ("trained", "features", "table", "info")),
    *(("neighbors", name) for name in ("features", "table", "info", "vocabulary")),
    *(("calibrate", name) for name in ("model", "features", "table", "info")),
    *(("evaluate", name) for name in ("model", "features", "table", "info")),
    *(("report", name) for name in ("images", "captions", "references", "scores", "metrics")),
]


@pytest.mark.parametrize(("stage", "option"), SWAPPED)
def test_a_file_of_another_run_is_reported(
    tiny: Artifacts, other: Artifacts, tmp_path: Path, stage: str, option: str
) -> None:
    line, outs = run(tiny, stage, tmp_path / "out", **{option: path_of(other, stage, option)})
    assert line is not None
    assert not outs
