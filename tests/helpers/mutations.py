"""Random changes of valid files, with or without a matching digest."""

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
    """Flip, delete, duplicate, move or replace some bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        begin = rng.randrange(len(changed) + 1)
        end = min(len(changed), begin + rng.choice([1, 2, 4, 8, 64, 512]))
        match rng.randrange(6):
            case 0 if begin < len(changed):
                changed[begin] ^= 1 << rng.randrange(8)
            case 1:
                del changed[begin:end]
            case 2:
                changed[begin:begin] = changed[begin:end]
            case 3:
                changed[begin:end] = rng.choice(SPECIAL_BYTES)
            case 4:
                other = rng.randrange(len(changed) + 1)
                changed[begin:end] = changed[other : other + end - begin]
            case 5:
                del changed[begin:]
    return bytes(changed)


SPECIAL_BYTES = (
    *(b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\n", b"\r", b'"', b"\t"),
    *(b"'", b"nan", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"{", b"}", b"\xed\xa0\x80"),
    *(b"\x1b[2J", "‮".encode(), b"../../etc/passwd", b"&a [*a]", b"!!python/object:os.system"),
    *(b"=1+1", b"%n"),
)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Replace one value of a file with a digest, and update the digest."""
    parsed = json.loads(content)
    replace_value(parsed, rng)
    if isinstance(parsed, dict) and "digest" in parsed:
        del parsed["digest"]
        try:
            parsed["digest"] = json_digest(parsed)
        except ValueError:
            parsed["digest"] = "0" * 16
    return json.dumps(parsed).encode()


def mutated_header(content: bytes, rng: random.Random) -> bytes:
    """Do the same in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["showtell"])
    if rng.random() < 0.3:
        replace_value(header, rng)
    else:
        replace_value(metadata, rng)
        metadata.pop("digest", None)
        metadata["digest"] = json_digest([metadata, tensors_digest(load(content))])
        header["__metadata__"]["showtell"] = json.dumps(metadata)
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


def replace_value(parsed: Any, rng: random.Random) -> None:
    """Replace one value in parsed JSON by an unexpected one, or delete it."""
    values: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys)[:200]:
            values.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(parsed)
    node, key = rng.choice(values)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)


def mutated_zip(content: bytes, rng: random.Random) -> bytes:
    """Write a valid zip whose members have odd names or contents."""
    file = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),  # zipfile warns of duplicate names
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist()[: 1 + rng.randrange(12)] + source.infolist()[-4:]:
            name, data = member.filename, source.read(member)
            if rng.random() < 0.3:
                data = mutated(data, rng)
            if rng.random() < 0.1:
                name = rng.choice(["/", ".", "", "..", "a/../b.jpg", "\x1b.jpg", "=1.jpg", name])
            target.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()
