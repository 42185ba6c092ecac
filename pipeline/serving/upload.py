"""An image out of a request: everything is bounded and checked before it is decoded."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from pipeline.images.decode import FORMATS

TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/gif": "GIF",
    "image/webp": "WebP",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/x-portable-pixmap": "PPM",
}
# Unnamed types are taken as they are: the content decides.
ACCEPTED = {*TYPES, "image/jpg", "image/x-ms-bmp", "application/octet-stream", ""}
MULTIPART = "multipart/form-data"
FIELD = "image"
OVERHEAD = 64 << 10  # of a multipart body, beside the image
DRAIN_SECONDS = 2


@dataclass(frozen=True)
class Limits:
    """What a request may send."""

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    seconds: float = 30  # for the whole body


async def read_image(request: Request, limits: Limits) -> bytes:
    """Receive an image, as the body or as the field `image` of a form.

    Raises:
        HTTPException: 408 slow, 413 too large, 415 not an image, 422 empty or damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind not in ACCEPTED | {MULTIPART}:
            raise HTTPException(
                415, f"the content type must be image/jpeg, image/png, … or {MULTIPART}"
            )
        content = await _receive(request, kind == MULTIPART, limits)
        check_header(content, limits.max_pixels)
        return content
    except HTTPException as refused:
        if refused.status_code != 408:
            await drain(request, limits.max_bytes)
        raise


async def _receive(request: Request, is_form: bool, limits: Limits) -> bytes:
    most = limits.max_bytes + (OVERHEAD if is_form else 0)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(limits)
    bounded = Request(request.scope, _bounded(request.receive, most, _too_large(limits)))
    try:
        async with asyncio.timeout(limits.seconds):
            if not is_form:
                return await bounded.body()
            async with bounded.form(max_files=1, max_fields=0, max_part_size=0) as form:
                file = form.get(FIELD)
                if not isinstance(file, UploadFile):
                    raise HTTPException(422, f"the form has no file in the field '{FIELD}'")
                content = await file.read()
                if len(content) > limits.max_bytes:
                    raise _too_large(limits)
                return content
    except TimeoutError:
        raise HTTPException(
            408,
            f"the image did not arrive within {limits.seconds:g} seconds",
            {"Connection": "close"},
        ) from None
    except HTTPException as refused:
        if refused.status_code == 400:  # Starlette's, of a malformed form
            raise HTTPException(422, f"the form cannot be read: {refused.detail}") from None
        raise


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the image has more than {limits.max_bytes / 1e6:g} MB")


def _bounded(receive: Receive, most: int, error: HTTPException) -> Receive:
    """The same messages; `error` once their bodies exceed `most` bytes."""
    received = 0

    async def receive_some() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise error
        return message

    return receive_some


async def drain(request: Request, most: int) -> None:
    """Read what a refused client still sends, within bounds: it reads the answer afterwards, and
    would find a closed connection in its place."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            left = most
            while left > 0 and not await request.is_disconnected():
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        pass


def check_header(content: bytes, max_pixels: int) -> None:
    """Check an image by its header alone: what it is, and how large it would become.

    Raises:
        HTTPException: 413, 415 or 422.
    """
    if not content:
        raise HTTPException(422, "the image is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        names = ", ".join(TYPES.values())
        raise HTTPException(415, f"this is not an image of a supported format ({names})") from None
    except Exception:  # Pillow's parsers raise almost anything on damaged bytes
        raise HTTPException(422, "the image is damaged and cannot be decoded") from None
    if width * height > max_pixels:
        raise HTTPException(
            413,
            f"the image has {width} x {height} pixels, more than {max_pixels / 1e6:g} megapixels",
        )


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`; if the client leaves first, cancel it and return None."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
