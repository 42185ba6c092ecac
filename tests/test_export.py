"""`showtell export`: a folder that another machine can load, and a model card."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import showtell
from pipeline.decoders.captioner_file import read_model, write_model
from pipeline.export.model_card import escape_markdown
from tests.conftest import ROOT, Artifacts, command, one_line


def export(tiny: Artifacts, out: Path, *options: object) -> list[object]:
    inputs = ("--model", tiny.model, "--backbone", tiny.backbone, "--confidence", tiny.confidence)
    return ["export", out, *inputs, "--reports-dir", tiny.reports, *options]


@pytest.fixture(scope="module")
def exported(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "little-world"
    result = command(*export(tiny, folder, "--data-license", "Drawn by the tests: free."))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(path)
    return path


def test_it_captions_as_the_workspace_does(tiny: Artifacts, exported: Path, photo: Path) -> None:
    ours = showtell.load(tiny.folder / "models", device="cpu").caption(photo, alternatives=1)
    theirs = showtell.load(exported, device="cpu").caption(photo, alternatives=1)
    assert (ours.text, ours.score, ours.token_probs) == (
        theirs.text,
        theirs.score,
        theirs.token_probs,
    )
    assert ours.confidence == theirs.confidence is not None
    assert ours.alternatives[0].text == theirs.alternatives[0].text
    line = command("caption", photo, "--model", exported, "--device", "cpu").stdout
    assert line.split("\t")[1] == ours.text


def test_written_again_it_has_the_same_bytes(
    tiny: Artifacts, exported: Path, tmp_path: Path
) -> None:
    again = tmp_path / "little-world"
    for _ in range(2):  # the second over the first
        result = command(*export(tiny, again, "--data-license", "Drawn by the tests: free."))
        assert result.returncode == 0, result.stderr
        files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        names = ["README.md", "backbone.safetensors", "config.json", "model.safetensors"]
        assert [path.name for path in files] == names
        for path in files:
            assert (again / path).read_bytes() == (exported / path).read_bytes(), path


def test_the_card_is_what_hubs_read(tiny: Artifacts, exported: Path) -> None:
    _, front, text = (exported / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    content = yaml.safe_load(front)
    assert content["library_name"] == "showtell"
    (index,) = content["model-index"]
    (result,) = index["results"]
    metrics = json.loads((tiny.reports / "metrics.json").read_text())
    values = {one["type"]: one["value"] for one in result["metrics"]}
    assert values["cider"] == pytest.approx(metrics["cider"], abs=0.01)
    assert "Drawn by the tests: free." in text
    assert metrics["meta"][0]["split_digest"] in text
    _, examples = text.split("## Examples")
    rows = [line for line in examples.split("## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 10
    config = json.loads((exported / "config.json").read_text())
    assert all(digest in text for digest in config["files"].values())


def test_a_model_may_be_its_folder(tiny: Artifacts, exported: Path, tmp_path: Path) -> None:
    options = ("--model", tiny.folder / "models", "--reports-dir", tiny.reports)
    result = command("export", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    ours, theirs = (
        (folder / "config.json").read_bytes() for folder in (tmp_path / "out", exported)
    )
    assert ours == theirs


def test_photos_that_may_be_shown_are_in_the_card(
    tiny: Artifacts, photo: Path, tmp_path: Path
) -> None:
    result = command(*export(tiny, tmp_path / "out", "--example", photo))
    assert result.returncode == 0, result.stderr
    assert "--dataset NAME --data-license TEXT" in result.stderr
    assert "](examples/1.jpg)" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out/examples/1.jpg").is_file()


def test_what_captions_contain_is_not_markup() -> None:
    assert escape_markdown("a | b\n[x](y) <img>") == r"a \| b�\[x\](y) \<img\>"


@pytest.mark.parametrize("name", ["model.safetensors", "backbone.safetensors", "config.json"])
def test_a_damaged_folder_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[-10] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(showtell.InputError, match=name):
        showtell.load(folder)


def test_a_folder_of_something_else_is_not_written_to(tiny: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    line = one_line(command(*export(tiny, tmp_path)))
    assert f"{tmp_path} is not empty, and not an exported captioner" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_reports_of_another_model_are_refused(tiny: Artifacts, tmp_path: Path) -> None:
    other = read_model(tiny.model, torch.device("cpu"))
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1)
    write_model(tmp_path / "other.safetensors", other)
    arguments = export(tiny, tmp_path / "out")
    arguments[arguments.index(tiny.model)] = tmp_path / "other.safetensors"
    line = one_line(command(*arguments))
    assert f"metrics.json is not the evaluation of {tmp_path / 'other.safetensors'}" in line
    assert not (tmp_path / "out").exists()


def test_it_loads_without_dvc_and_training_code(exported: Path, photo: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['dvc'] = None\n"
        "import showtell\n"
        f"print(showtell.load({str(exported)!r}, device='cpu').caption({str(photo)!r}))\n"
        "loaded = [name for name in sys.modules if name.startswith('pipeline.')]\n"
        "assert not [name for name in loaded if 'training' in name or 'stages' in name], loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
