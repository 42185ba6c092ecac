"""Every form of captions and images: the same data set in another form gives the same table."""

import hashlib
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.captions.table import read_info, read_table
from pipeline.images.archive import ImageArchive
from pipeline.runtime.errors import InputError
from tests.conftest import SHARED, make_zip
from tests.helpers.datasets import PPM, run_download, run_prepare
from tests.helpers.forms import FORMS, DataSet, Form, json_lines, token_zip, webdataset, write_tar
from tests.helpers.images import jpeg
from tests.helpers.server import serving

WORDS = 'a dog runs on the grass, "quickly" in Straße 5 with été and it\'s red'.split()


def own_data(count: int = 24) -> DataSet:
    """Images of different bytes with one to five captions each."""
    rng = random.Random(0)
    names = [f"IMG {n:02}.{'JPG' if n % 2 else 'jpg'}" for n in range(count)]
    return DataSet(
        images={
            name: jpeg(Image.new("RGB", (8, 8), (4 * n, 0, 99))) for n, name in enumerate(names)
        },
        captions={
            name: [" ".join(rng.choices(WORDS, k=6)) + " ." for _ in range(1 + n % 5)]
            for n, name in enumerate(names)
        },
        splits={name: ("train", "train", "val", "test")[n % 4] for n, name in enumerate(names)},
    )


def made(data: DataSet, form: Callable[[DataSet, Path], Form], folder: Path) -> Path:
    """Write the data in this form, then download and prepare it; return the outputs' folder."""
    source = folder / "source"
    source.mkdir(parents=True)
    sources = form(data, source)
    out = run_download(folder, sources.images, sources.text)
    run_prepare(out, **sources.prepare)
    return out


def table_rows(out: Path) -> list[list[str]]:
    """The table's rows, without the folders of image ids, sorted by image."""
    rows = read_table(out / "captions.csv").rows
    rows["image_id"] = rows["image_id"].str.rpartition("/")[2]
    return rows.sort_values("image_id", kind="stable").to_numpy().tolist()


def image_bytes(out: Path) -> dict[str, bytes]:
    with ImageArchive(out / "images.zip") as archive:
        return {image_id.rpartition("/")[2]: archive.read(image_id) for image_id in archive.ids}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_table_and_images(
    form: Callable[[DataSet, Path], Form], tmp_path: Path
) -> None:
    data = own_data()
    expected = made(data, token_zip, tmp_path / "token")
    out = made(data, form, tmp_path / "form")
    assert table_rows(out) == table_rows(expected)
    assert image_bytes(out) == image_bytes(expected) == data.images
    infos = [read_info(path / "captions.csv") for path in (out, expected)]
    assert infos[0].split_digest == infos[1].split_digest
    assert infos[0].split == "lists"


def test_tars_of_samples_have_their_captions_beside_the_images(tmp_path: Path) -> None:
    data = own_data(60)
    out = made(data, webdataset, tmp_path / "tars")
    assert image_bytes(out) == data.images
    rows = read_table(out / "captions.csv").rows
    assert dict(Counter(rows["image_id"])) == {k: len(v) for k, v in data.captions.items()}
    source = webdataset(data, tmp_path / "again")
    table = tmp_path / "splits.csv"
    table.write_text("image,split\n" + "".join(f"{k},{v}\n" for k, v in data.splits.items()))
    with_splits = run_download(tmp_path, source.images, [source.images, table])
    run_prepare(with_splits)
    assert table_rows(with_splits) == table_rows(made(data, token_zip, tmp_path / "token"))


@pytest.mark.parametrize("packing", ["folder", "zip", "tar.gz", "folder of tars"])
def test_images_come_from_any_container(tmp_path: Path, packing: str) -> None:
    data = own_data()
    source = tmp_path / "source"
    source.mkdir()
    form = json_lines(data, source)
    names = {f"deep/{name}": content for name, content in data.images.items()}
    images = {
        "folder": lambda: form.images,
        "zip": lambda: make_zip(tmp_path / "x.zip", dict(names)),
        "tar.gz": lambda: write_tar(tmp_path / "x.tar.gz", names.items(), "w:gz"),
        "folder of tars": lambda: write_tar(tmp_path / "tars/x.tar", names.items()).parent,
    }[packing]()
    out = run_download(tmp_path, images, form.text)
    run_prepare(out)
    assert table_rows(out) == table_rows(made(data, token_zip, tmp_path / "token"))
    assert image_bytes(out) == data.images


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    data = own_data()
    source = webdataset(data, tmp_path)
    digests = []
    for folder in ("one", "two"):
        out = run_download(tmp_path / folder, source.images)
        digests.append(
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())]
        )
    assert digests[0] == digests[1]


def test_img2datasets_repeated_images_become_one_with_all_captions(tmp_path: Path) -> None:
    """Its recipe for COCO has one sample per caption."""
    data = own_data(40)
    members: list[tuple[str, bytes]] = []
    for number, (name, caption, _) in enumerate(data.rows()):
        sample = {"caption": caption, "url": f"http://x/{name}", "status": "success"}
        members += [
            (f"{number:09d}.jpg", data.images[name]),
            (f"{number:09d}.txt", caption.encode()),
            (f"{number:09d}.json", json.dumps(sample).encode()),
        ]
    write_tar(tmp_path / "shards/00000.tar", members)
    (tmp_path / "shards/00000_stats.json").write_text("{}")
    out = run_download(tmp_path, tmp_path / "shards")
    run_prepare(out)
    assert sorted(image_bytes(out).values()) == sorted(data.images.values())
    captions = read_table(out / "captions.csv").rows.groupby("image_id")["caption"].apply(list)
    assert sorted(captions) == sorted(data.captions.values())


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    names = [f"{folder}/{n}.jpg" for folder in "ab" for n in range(30)]
    images = make_zip(tmp_path / "photos.zip", {f"photos/{name}": PPM for name in names})
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{name},in folder {name[0]}\n" for name in names))
    out = run_download(tmp_path, images, table)
    run_prepare(out)
    rows = read_table(out / "captions.csv").rows
    assert rows["image_id"].tolist() == sorted(names)
    assert all(rows["tokens"] == "in folder " + rows["image_id"].str[0])
    table.write_text("image,caption\n1.jpg,a dog\n")
    out = run_download(tmp_path, images, table)
    message = r"'1\.jpg', which may be 2 images: 'a/1\.jpg', 'b/1\.jpg'; write the folder too"
    with pytest.raises(InputError, match=message):
        run_prepare(out)


@pytest.mark.parametrize("named", ["{}", "photos/{}", "/home/me/photos/{}", "C:\\photos\\{}"])
def test_captions_may_name_the_base_name_or_a_longer_path(tmp_path: Path, named: str) -> None:
    names = [f"{n}.jpg" for n in range(60)]
    images = make_zip(tmp_path / "p.zip", {f"in/{n}.jpg"[3 * (n % 2) :]: PPM for n in range(60)})
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{named.format(n)},a dog\n" for n in names))
    out = run_download(tmp_path, images, table)
    if "photos" in named:  # `photos/0.jpg` is not `in/0.jpg`
        with pytest.raises(InputError, match=r"30 images that .* lacks: "):
            run_prepare(out)
    else:
        run_prepare(out, val_fraction=0.3, test_fraction=0.3)


def test_what_does_not_fit_is_listed_and_counted(tmp_path: Path) -> None:
    images: dict[str, bytes | str] = dict.fromkeys([f"{n}.jpg" for n in range(40)], PPM)
    archive = make_zip(tmp_path / "i.zip", images | {"bad.jpg": b"<html>", "alone.jpg": PPM})
    table = tmp_path / "captions.csv"
    table.write_text(
        "image,caption\n"
        + "".join(f"{name},a dog\n" for name in images)
        + "lost.jpg,a cat\nlost.jpg,a cat\nbad.jpg,a cow\n0.jpg,...\n"
    )
    with pytest.raises(InputError, match=r"bad\.jpg is not an image .*on_bad_image to exclude"):
        run_download(tmp_path, archive, table)
    with pytest.raises(InputError, match=r"that is 2\.4%, more than download\.max_excluded"):
        run_download(tmp_path, archive, table, on_bad_image="exclude", max_excluded=0.02)
    out = run_download(tmp_path, archive, table, on_bad_image="exclude")
    assert "bad.jpg" in (out / "unreadable_images.csv").read_text()
    with pytest.raises(InputError) as error:
        run_prepare(out)
    assert "1 image that" in str(error.value)
    assert "lacks: 'lost.jpg'; add them" in str(error.value)
    assert "1 image that cannot be read: 'bad.jpg'" in str(error.value)
    assert "1 image without captions: 'alone.jpg'" in str(error.value)
    assert "1 caption without words, of '0.jpg'; or set prepare.on_mis" in str(error.value)
    assert not (out / "captions.csv").exists()
    with pytest.raises(InputError, match=r"that is 9\.1%, more than prepare\.max_excluded"):
        run_prepare(out, on_mismatch="exclude")
    run_prepare(out, on_mismatch="exclude", max_excluded=0.1)
    assert (out / "excluded.csv").read_text().splitlines() == [
        "reason,image,caption",
        "empty caption,0.jpg,...",
        "image without captions,alone.jpg,",
        "missing image,lost.jpg,a cat",
        "missing image,lost.jpg,a cat",
        "unreadable image,bad.jpg,a cow",
    ]
    info = read_info(out / "captions.csv")
    assert info.excluded == {
        "empty caption": 1,
        "image without captions": 1,
        "missing image": 1,
        "unreadable image": 1,
    }
    assert sum(info.images.values()) == 40


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", "[]", "'a.json' has no captions"),
        ("a.json", '{"x": 1}', "has no captions in a known form; expected Karpathy's"),
        ("a.json", '[{"foo": 1}]', "entry 1: expected an object with 'image' and 'caption', found"),
        ("a.json", '[{"image": "a.jpg", "caption": 5}]', "entry 1: expected captions, found 5"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "x"}\n{', "line 2 is not valid JSON"),
        ("a.json", '{"images": [{"filename": 3}]}', "images[0]: expected a text 'filename'"),
        (
            "a.json",
            '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "annotations[0]: 'images' has no id 1",
        ),
        ("a.json", '{"images": [{"filename": "a.jpg", "split": "x", "sentences": [{"raw": "b"}]}]}',
         "the split 'x' is unknown; allowed are train, training, restval, val"),
        ("a.csv", "image,caption,split\na.jpg,x,train\na.jpg,y,val\n", "is in two splits, 'train'"),
        ("a.csv", "foto,wort\na.jpg,x\n", "name your columns in prepare.image_column"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_one_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    text = tmp_path / file
    text.write_text(content)
    out = run_download(tmp_path, make_zip(tmp_path / "i.zip", {"a.jpg": PPM}), text)
    with pytest.raises(InputError) as error:
        run_prepare(out)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_captions_files_need_a_name(tmp_path: Path) -> None:
    data = own_data()
    (tmp_path / "source").mkdir()
    form = json_lines(data, tmp_path / "source")
    other = tmp_path / "other.csv"
    other.write_text("image,caption\nIMG 00.jpg,a dog\n")
    out = run_download(tmp_path, form.images, [form.text, other])
    with pytest.raises(InputError, match=r"two captions files, 'all\.json', 'other\.csv'; "):
        run_prepare(out)
    with pytest.raises(InputError, match=r"has no 'x\.csv', which prepare\.file names; it has"):
        run_prepare(out, file="x.csv")
    run_prepare(out, file="all.json")
    run_prepare(out, format="json")
    assert len(read_table(out / "captions.csv").rows) == len(data.rows())


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    data = own_data()
    tar = write_tar(tmp_path / "x.tar", data.images.items())
    content = tar.read_bytes()
    for size in (len(content) // 2, 1024 * (len(content) // 3 // 1024)):
        tar.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"x\.tar is a truncated or damaged tar"):
            run_download(tmp_path, tar, tmp_path / "none.csv")


def test_sources_are_fetched_once_and_packed(tmp_path: Path) -> None:
    data = own_data()
    source = tmp_path / "source"
    source.mkdir()
    form = token_zip(data, source)
    half = dict(list(data.images.items())[:12])
    rest = {name: content for name, content in data.images.items() if name not in half}
    tar, archive = write_tar(source / "a.tar", half.items()), make_zip(source / "b.zip", dict(rest))
    md5s = [hashlib.md5(path.read_bytes()).hexdigest() for path in (tar, archive)]
    with serving(tar.read_bytes()) as one, serving(archive.read_bytes()) as two:
        urls = [f"{one.url}/a.tar", f"{two.url}/b.zip"]
        for _ in range(2):
            out = run_download(tmp_path, urls, form.text, images_md5=md5s)
        assert len(one.requests) == len(two.requests) == 1
    assert image_bytes(out) == data.images
    assert {path.name for path in out.iterdir()} == {
        *("images.zip", "text.zip", "unreadable_images.csv")
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSet, list[list[str]]]:
    """Flickr8k's captions and splits, and its table; the images are single pixels here."""
    data = flickr8k()
    return data, table_rows(made(data, token_zip, tmp_path_factory.mktemp("token")))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Flickr8k in ../shared")
@pytest.mark.parametrize("form", FORMS[1:], ids=lambda form: form.__name__)
def test_flickr8k_itself_in_every_form(
    form: Callable[[DataSet, Path], Form],
    tmp_path: Path,
    real: tuple[DataSet, list[list[str]]],
) -> None:
    data, expected = real
    out = made(data, form, tmp_path / "form")
    assert table_rows(out) == expected
    assert read_info(out / "captions.csv").split == "official"


def flickr8k() -> DataSet:
    with zipfile.ZipFile(SHARED / "flickr8k/Flickr8k_text.zip") as archive:
        files = {Path(name).name: archive.read(name).decode() for name in archive.namelist()}
    captions: dict[str, list[str]] = {}
    splits = {
        name: split
        for split, file in (("train", "train"), ("val", "dev"), ("test", "test"))
        for name in files[f"Flickr_8k.{file}Images.txt"].split()
    }
    for line in files["Flickr8k.token.txt"].splitlines():
        key, caption = line.split("\t")
        if (name := key.partition("#")[0]) in splits:
            captions.setdefault(name, []).append(caption)
    return DataSet(dict.fromkeys(captions, PPM.encode()), captions, splits)
