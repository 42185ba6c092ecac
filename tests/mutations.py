"""Valid files, changed at random or by a forger who makes the digests fit."""

import io
import json
import random
import warnings
import zipfile
from typing import Any

from safetensors.torch import load

from pipeline.runtime.files import json_digest
from pipeline.runtime.tensors import tensors_digest


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, dropped, doubled, moved or replaced by telling ones."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(len(made) + 1)
        end = min(len(made), place + rng.choice([1, 2, 4, 8, 64, 512]))
        match rng.randrange(6):
            case 0 if place < len(made):
                made[place] ^= 1 << rng.randrange(8)
            case 1:
                del made[place:end]
            case 2:
                made[place:place] = made[place:end]
            case 3:
                made[place:end] = rng.choice(TELLING)
            case 4:
                other = rng.randrange(len(made) + 1)
                made[place:end] = made[other : other + end - place]
            case 5:
                del made[place:]
    return bytes(made)


TELLING = (
    *(
        b"\0",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xff" * 8,
        b"\n",
        b"\r",
        b'"',
        b"\t",
        b"'",
    ),
    *(b"nan", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"{", b"}", b"\xed\xa0\x80", b"\x1b[2J"),
    *("‮".encode(), b"../../etc/passwd", b"&a [*a]", b"!!python/object:os.system", b"=1+1", b"%n"),
)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """One value of a sealed file replaced, and the digest made to fit, as a forger would."""
    whole = json.loads(content)
    replace_one(whole, rng)
    if isinstance(whole, dict) and "digest" in whole:
        del whole["digest"]
        try:
            whole["digest"] = json_digest(whole)
        except ValueError:
            whole["digest"] = "0" * 16
    return json.dumps(whole).encode()


def mutated_header(content: bytes, rng: random.Random) -> bytes:
    """The same in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ours = json.loads(header["__metadata__"]["showtell"])
    if rng.random() < 0.3:
        replace_one(header, rng)
    else:
        replace_one(ours, rng)
        ours.pop("digest", None)
        ours["digest"] = json_digest([ours, tensors_digest(load(content))])
        header["__metadata__"]["showtell"] = json.dumps(ours)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**400,
        1.5,
        float("inf"),
        "",
        "x",
        "\x1b[2J",
        "a" * 9999,
    ),
    *([], {}, [[]], [0], {"": None}, ["<pad>"] * 5, "../x"),
)


def replace_one(whole: Any, rng: random.Random) -> None:
    """One value, anywhere in parsed JSON, by one that surprises, or by none."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys)[:200]:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(whole)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)


def mutated_zip(content: bytes, rng: random.Random) -> bytes:
    """A whole zip whose members have odd names, sizes or contents."""
    made = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),  # zipfile's, of names that are there twice
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist()[: 1 + rng.randrange(12)] + source.infolist()[-4:]:
            name, inside = member.filename, source.read(member)
            if rng.random() < 0.3:
                inside = mutated(inside, rng)
            if rng.random() < 0.1:
                name = rng.choice(["/", ".", "", "..", "a/../b.jpg", "\x1b.jpg", "=1.jpg", name])
            target.writestr(zipfile.ZipInfo(name), inside)
    return made.getvalue()
