"""An image out of a request: everything is bounded and checked before it is decoded."""

import asyncio
import io
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

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


class Body:
    """A request's body as ASGI delivers it, counted and bounded."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self.limits = receive, limits
        self._received, self.ended = 0, False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 413, beyond the limit.
        """
        message = await self._next()
        if self._received > self.limits.max_bytes + OVERHEAD:
            raise too_large(self.limits)
        return message

    async def drain(self) -> None:
        """Read what a refused client still sends, within bounds: it reads the answer afterwards,
        and would find a closed connection in its place."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.ended and self._received < 3 * self.limits.max_bytes:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        return message


async def read_image(scope: Scope, body: Body) -> bytes:
    """Receive an image, as the body or as the field `image` of a form.

    Raises:
        HTTPException: 408 slow, 413 too large, 415 not an image, 422 empty or damaged.
    """
    request, limits = Request(scope, body), body.limits
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ACCEPTED | {MULTIPART}:
        raise HTTPException(
            415, f"the content type must be image/jpeg, image/png, … or {MULTIPART}"
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_bytes + OVERHEAD:
        raise too_large(limits)
    try:
        async with asyncio.timeout(limits.seconds):
            content = await (_read_form(request) if kind == MULTIPART else request.body())
    except TimeoutError:
        why = f"the image did not arrive within {limits.seconds:g} seconds"
        raise HTTPException(408, why) from None
    if len(content) > limits.max_bytes:
        raise too_large(limits)
    check_header(content, limits.max_pixels)
    return content


def too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the image has more than {limits.max_bytes / 1e6:g} MB")


async def _read_form(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=0, max_part_size=0) as form:
            file = form.get(FIELD)
            if not isinstance(file, UploadFile):
                raise HTTPException(422, f"the form has no file in the field '{FIELD}'")
            return await file.read()
    except HTTPException as refused:
        if refused.status_code == 400:  # Starlette's, of a malformed form
            if refused.detail.startswith("Too many fields"):
                why = f"the form has a text field; send the image as a file in the field '{FIELD}'"
                raise HTTPException(422, why) from None
            raise HTTPException(422, f"the form cannot be read: {refused.detail}") from None
        raise


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


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of `work`; if the client leaves first, cancel it and return None."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
