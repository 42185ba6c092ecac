"""`showtell caption`: the model and the search."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.backbones.weights import BackboneWeights, read_backbones, write_backbones
from pipeline.captioning.captioner import Captioner
from pipeline.runtime.device import resolve_device
from pipeline.runtime.errors import InputError
from tests.conftest import Artifacts, command, one_line
from tests.helpers.captions import caption

pytest_plugins = ["tests.helpers.captions"]


def test_a_folder_is_captioned_as_evaluation_did(tiny: Artifacts, photos: Path) -> None:
    """The same search on the same images says the same: there is one path, not two."""
    options = ("--beam-size", 2, "--max-length", 12, "--format", "coco", "--device", "cpu")
    result = command(*caption(tiny, photos, *options))
    assert result.returncode == 0, result.stderr
    ours = {one["image_id"]: one["caption"] for one in json.loads(result.stdout)}
    evaluated = json.loads((tiny.reports / "captions.json").read_text())
    theirs = {one["image_id"]: one["caption"] for one in evaluated}
    assert ours.keys() == theirs.keys()
    # The cache rounds to float16, so a tie may fall otherwise; more would be another path.
    assert sum(ours[key] == theirs[key] for key in ours) >= len(ours) - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jpg"], "nowhere.jpg does not exist; check the path"),
        (["file:///a.jpg"], "file:///a.jpg is not an address of http or https"),
        (["{folder}/empty"], "has no images"),
        (["{folder}/a.png", "--device", "tpu"], "must be auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_captioned_is_said(
    tiny: Artifacts, tmp_path: Path, arguments: list[str], said: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    result = command(*caption(tiny, *(one.format(folder=tmp_path) for one in arguments)))
    assert said in one_line(result)


def test_without_a_model_what_makes_one_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = command("caption", tmp_path / "a.png", "--model", tmp_path / "none.safetensors")
    assert "none.safetensors does not exist; name a folder that 'dvc repro' or" in one_line(result)


def test_a_model_is_its_file_or_folder_with_the_backbone_beside_it(
    tiny: Artifacts, photos: Path, tmp_path: Path
) -> None:
    folder, (photo, *_) = tiny.folder / "models", sorted(photos.iterdir())
    expected = command(*caption(tiny, photo)).stdout
    assert command("caption", photo, "--model", tiny.model, cwd=tmp_path).stdout == expected
    assert command("caption", photo, "--model", folder).stdout == expected
    files, folders = (
        command("caption", photo, "--model", one, "--model", one) for one in (tiny.model, folder)
    )
    assert files.stdout == folders.stdout != ""


def test_arguments_are_checked_before_the_model_is_loaded(photos: Path, tmp_path: Path) -> None:
    model = ("--model", tmp_path / "none")
    line = one_line(command("caption", "nowhere.jpg", "'nothing/*'", *model))
    assert "nowhere.jpg does not exist; check the path (and 1 more)" in line
    beams = ("--beam-size", 5, "--beam-groups", 2)
    assert "--beam-size 5 is not a multiple" in one_line(command("caption", photos, *beams, *model))


def test_another_backbone_is_refused(tiny: Artifacts, tmp_path: Path) -> None:
    (mine,) = read_backbones(tiny.backbone)
    other = {name: tensor + 1 for name, tensor in mine.tensors.items()}
    path = tmp_path / "other.safetensors"
    write_backbones(path, [BackboneWeights(mine.name, "other", mine.preprocessing, other)])
    with pytest.raises(InputError, match="is not the one that the features came from"):
        Captioner(path, [tiny.model], resolve_device("cpu"))


def test_captions_are_drawn_and_drawn_again_alike(tiny: Artifacts, photos: Path) -> None:
    files = sorted(photos.iterdir())[:2]
    draw = ("--num-samples", 20, "--seed", 3)
    made = [command(*caption(tiny, *files, *draw)).stdout for _ in range(2)]
    assert made[0] == made[1]
    lines = [line.split("\t") for line in made[0].splitlines()]
    assert [Path(path) for path, _ in lines] == [files[0]] * 20 + [files[1]] * 20
    assert len({text for _, text in lines}) > 10
    other = command(*caption(tiny, *files, "--num-samples", 20, "--seed", 4)).stdout
    assert other != made[0]


def test_the_likeliest_word_alone_is_what_a_greedy_search_says(
    tiny: Artifacts, photos: Path
) -> None:
    def captions(*arguments: object) -> list[dict[str, str]]:
        done = command(*caption(tiny, photos, "--format", "coco", *arguments))
        return json.loads(done.stdout)

    greedy = captions("--beam-size", 1, "--length-penalty", 0, "--no-repeat-ngram-size", 0)
    for only in (("--top-k", 1), ("--top-p", 0.01)):
        assert captions("--num-samples", 1, *only) == greedy


def test_every_group_of_beams_says_its_own(tiny: Artifacts, photos: Path) -> None:
    photo = next(photos.iterdir())
    result = command(
        *caption(tiny, photo, "--beam-size", 4, "--beam-groups", 4, "--diversity-penalty", 20)
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(set(lines)) == 4
    refused = command(*caption(tiny, photo, "--beam-size", 5, "--beam-groups", 2))
    assert "--beam-size 5 is not a multiple of --beam-groups 2; set both" in one_line(refused)


def test_attention_of_two_images_of_one_name_is_refused_before_any_is_drawn(
    tiny: Artifacts, photos: Path, tmp_path: Path
) -> None:
    (first, *_) = sorted(photos.iterdir())
    other = tmp_path / first.name
    other.write_bytes(first.read_bytes())
    drawn = command("attention", first, other, "--out-dir", tmp_path / "drawn")
    assert f"two images are named {first.name}; draw them to two folders" in one_line(drawn)
    assert not (tmp_path / "drawn").exists()


def test_an_option_without_effect_is_refused(tiny: Artifacts, photos: Path) -> None:
    folder = tiny.folder / "models"
    line = one_line(command("caption", photos, "--model", folder, "--backbone", tiny.backbone))
    assert f"{folder} is a folder with a backbone; leave out --backbone" in line
    line = one_line(command("caption", photos, "--model", folder, "--rev", "HEAD"))
    assert "--rev has its own model and backbone; leave out --model, --backbone" in line
