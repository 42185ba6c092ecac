"""One data set in every format that captioning data comes in."""

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import make_zip
from tests.helpers.images import jpeg

WORDS = 'a dog runs on the grass, "quickly" in Straße 5 with été and it\'s red'.split()
KARPATHY_SPLITS = {"train": "restval", "val": "val", "test": "test"}


@dataclass(frozen=True)
class DataSet:
    """Images, captions and splits by name."""

    images: dict[str, bytes]
    captions: dict[str, list[str]]
    splits: dict[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """All captions with their image's name and split."""
        return [
            (name, caption, self.splits[name])
            for name, captions in self.captions.items()
            for caption in captions
        ]


@dataclass(frozen=True)
class Sources:
    """What params name: the sources of images and captions, and how to read them."""

    images: Any
    text: Any = None
    prepare: dict[str, Any] = field(default_factory=dict)


def small_data(count: int = 24) -> DataSet:
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


def token_zip(data: DataSet, folder: Path) -> Sources:
    lines = [
        f"{name}#{i}\t{caption}\n"
        for name, captions in data.captions.items()
        for i, caption in enumerate(captions)
    ]
    members: dict[str, bytes | str] = {"Flickr8k.token.txt": "".join(lines)}
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = [f"{name}\n" for name, of in data.splits.items() if of == split]
        members[f"Flickr_8k.{file}Images.txt"] = "".join(names)
    return Sources(
        _image_zip(data, folder, "Flicker8k_Dataset/"), make_zip(folder / "t.zip", members)
    )


def karpathy(data: DataSet, folder: Path) -> Sources:
    entries = [
        {
            "filename": name,
            "filepath": "Flicker8k_Dataset",
            "split": KARPATHY_SPLITS[data.splits[name]],
            "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
        }
        for name, captions in data.captions.items()
    ]
    file = _write(folder / "dataset.json", json.dumps({"images": entries, "dataset": "mine"}))
    return Sources(_image_folder(data, folder), file)


def coco(data: DataSet, folder: Path) -> Sources:
    """Two JSON files as COCO has them, beside another of its files, and two zips of images."""
    names = list(data.images)
    halves = {"train2014": names[::2], "val2014": names[1::2]}
    members: dict[str, bytes | str] = {"annotations/instances_val2014.json": '{"annotations": []}'}
    zips = []
    for part, own in halves.items():
        images = [{"id": names.index(name), "file_name": name} for name in own]
        annotations = [
            {"id": n, "image_id": names.index(name), "caption": caption}
            for n, (name, caption, _) in enumerate(data.rows())
            if name in own
        ]
        content = {"info": {}, "images": images, "annotations": annotations}
        members[f"annotations/captions_{part}.json"] = json.dumps(content)
        zips.append(
            make_zip(folder / f"{part}.zip", {f"{part}/{name}": data.images[name] for name in own})
        )
    text = make_zip(folder / "annotations.zip", members)
    return Sources(zips, [text, _split_table(data, folder)])


def kaggle(data: DataSet, folder: Path) -> Sources:
    table = _table(["image", "caption"], [row[:2] for row in data.rows()])
    images = {f"Images/{name}": content for name, content in data.images.items()}
    archive = make_zip(
        folder / "archive.zip",
        images | {"captions.txt": table, "splits.csv": _split_table(data, folder).read_bytes()},
    )
    return Sources(archive)


def named_columns(data: DataSet, folder: Path) -> Sources:
    rows = [(caption, "x", name, split) for name, caption, split in data.rows()]
    text = _write(folder / "mine.tsv", _table(["Text_DE", "n", "photo", "part"], rows, "\t"))
    columns = {"image_column": "photo", "caption_column": ["text_de"], "split_column": "part"}
    return Sources(_image_folder(data, folder), text, columns)


def wide_table(data: DataSet, folder: Path) -> Sources:
    most = max(map(len, data.captions.values()))
    header = ["file_name", "split", *(f"caption_{i}" for i in range(most))]
    rows = [
        [name, data.splits[name], *captions, *[""] * (most - len(captions))]
        for name, captions in data.captions.items()
    ]
    return Sources(
        _image_folder(data, folder), _write(folder / "wide.csv", _table(header, rows, ";"))
    )


def flickr30k_table(data: DataSet, folder: Path) -> Sources:
    lines = ["image_name| comment_number| comment\n"]
    for name, captions in data.captions.items():
        lines += [f"{name}| {i}| {caption}\n" for i, caption in enumerate(captions)]
    # The real file has one row without its second bar.
    lines[2] = lines[2].replace("| 1| ", "| 1   ")
    text = _write(folder / "results.csv", "".join(lines))
    return Sources(
        _image_zip(data, folder, "flickr30k_images/"), [text, _split_table(data, folder)]
    )


def json_lines(data: DataSet, folder: Path) -> Sources:
    lines = [
        json.dumps({"image": f"photos/{name}", "caption": captions, "split": data.splits[name]})
        for name, captions in data.captions.items()
    ]
    return Sources(
        _image_folder(data, folder), _write(folder / "all.json", "\n".join(lines) + "\n")
    )


def json_objects(data: DataSet, folder: Path) -> Sources:
    rows = [{"file_name": n, "text": caption, "split": s} for n, caption, s in data.rows()]
    text = _write(folder / "all.json", json.dumps(rows))
    return Sources(_image_folder(data, folder), text)


def json_mapping(data: DataSet, folder: Path) -> Sources:
    text = _write(folder / "all.json", json.dumps(data.captions))
    return Sources(_image_folder(data, folder), [text, _split_table(data, folder)])


def image_folder(data: DataSet, folder: Path) -> Sources:
    """Hugging Face's imagefolder: metadata.jsonl in a folder of each split."""
    for split, part in (("train", "train"), ("val", "validation"), ("test", "test")):
        parent = folder / "imagefolder" / part
        parent.mkdir(parents=True)
        own = [name for name, of in data.splits.items() if of == split]
        for name in own:
            (parent / name).write_bytes(data.images[name])
        lines = [
            json.dumps({"file_name": name, "text": caption})
            for name in own
            for caption in data.captions[name]
        ]
        _write(parent / "metadata.jsonl", "\n".join(lines))
    return Sources(folder / "imagefolder")


def webdataset(data: DataSet, folder: Path) -> Sources:
    """Numbered tars with a text file and a JSON file beside each image; they have no splits."""
    names = list(data.images)
    for number, own in enumerate((names[::2], names[1::2])):
        members: list[tuple[str, bytes]] = []
        for name in own:
            stem = name.rpartition(".")[0]
            members += [
                (name, data.images[name]),
                (f"{stem}.txt", "\n".join(data.captions[name]).encode()),
                (f"{stem}.json", json.dumps({"key": stem, "url": "x"}).encode()),
            ]
        write_tar(folder / f"shards/{number:05d}.tar", members)
    return Sources(folder / "shards/*.tar")


FORMATS: list[Callable[[DataSet, Path], Sources]] = [
    *(token_zip, karpathy, coco, kaggle, named_columns, wide_table, flickr30k_table),
    *(json_lines, json_objects, json_mapping, image_folder),
]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _image_zip(data: DataSet, folder: Path, prefix: str) -> Path:
    images = {prefix + name: content for name, content in data.images.items()}
    return make_zip(folder / "images-in.zip", images)


def _image_folder(data: DataSet, folder: Path) -> Path:
    for name, content in data.images.items():
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "photos"


def _split_table(data: DataSet, folder: Path) -> Path:
    return _write(folder / "splits.csv", _table(["image", "split"], data.splits.items()))


def _table(header: list[str], rows: Iterable[Iterable[str]], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return file.getvalue()


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
