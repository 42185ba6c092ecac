"""Concurrent requests become batches.

A request takes one of a bounded number of places before its body is received, and keeps it until
it is answered. Its image is decoded and preprocessed in a small pool of threads; only then does it
wait for the captioner, as a few small arrays. A batch is what waits, up to `max_batch`. On a CPU it
is divided among threads with few cores each, which do not wait for each other at every step.
Requests with different settings are searched separately.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.extraction.feature_extractor import default_batch_size
from pipeline.extraction.preprocess import PreprocessedViews
from pipeline.extraction.stream import default_num_workers
from pipeline.images.decode import load_image
from pipeline.serving.settings import Settings

log = logging.getLogger(__name__)

WAIT = 0.1  # seconds that a batch waits for images that are being decoded
MAX_DECODERS = 4  # images decoded at once: each may take several bytes per pixel
MAX_SEARCHES = 4  # parts of a batch; a search of few images takes almost as long as one of many


class QueueFullError(Exception):
    """All places are taken."""


class CaptionerError(Exception):
    """The captioner failed; the log says why."""


class Waiting(NamedTuple):
    """An image that waits for its caption."""

    views: PreprocessedViews
    settings: Settings
    answer: asyncio.Future[Caption]


class Batcher:
    """Captions images of concurrent requests together. To be used as `async with`."""

    def __init__(
        self,
        captioner: Captioner,
        max_batch: int = 32,
        max_queue: int = 64,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """
        Args:
            observe: is told the size of each batch that is searched.
        """
        self.max_queue, self.taken = max_queue, 0
        self._captioner, self._max_batch, self._observe = captioner, max_batch, observe
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._decoding = 0
        device = captioner.device
        cores, threads = default_num_workers(device), torch.get_num_threads()
        self._decoders = ThreadPoolExecutor(min(cores, MAX_DECODERS), "decode", _single_threaded)
        on_cpu = device.type == "cpu"
        # A GPU's graphs share memory, so one thread does everything in order.
        self._parts = min(cores, MAX_SEARCHES) if on_cpu else 1
        share = (max(1, threads // self._parts),)
        self._searcher = ThreadPoolExecutor(self._parts, "search", torch.set_num_threads, share)
        if on_cpu:  # each thread runs the CNN on a few images, as the library does
            self._cnn = ThreadPoolExecutor(cores, "cnn", _single_threaded)
            self._chunk = default_batch_size(captioner.recipe, device)
        else:
            self._cnn, self._chunk = self._searcher, max_batch
        # On a GPU one batch is collected while another is computed. On a CPU all cores compute, and
        # batches would only be smaller.
        self._batches = 1 if on_cpu else 2

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._batches)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in (self._decoders, self._cnn, self._searcher):
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a request.

        Raises:
            QueueFullError: there is none.
        """
        if self.taken >= self.max_queue:
            raise QueueFullError
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def caption(self, content: bytes, settings: Settings) -> tuple[Caption, tuple[int, int]]:
        """The caption of an image, and the image's width and height.

        Raises:
            InputError: it cannot be decoded.
            CaptionerError: it can, but was not captioned.
        """
        loop = asyncio.get_running_loop()
        self._decoding += 1
        try:
            views, size = await loop.run_in_executor(self._decoders, self._read, content)
        finally:
            self._decoding -= 1
        answer: asyncio.Future[Caption] = loop.create_future()
        self._queue.put_nowait(Waiting(views, settings, answer))
        return await answer, size  # if the client leaves, this cancels the future

    def _read(self, content: bytes) -> tuple[PreprocessedViews, tuple[int, int]]:
        image = load_image(content)
        return self._captioner.preprocess(image), image.size

    async def _run(self) -> None:
        """Caption one batch after the other."""
        while True:
            batch = await self._collect()
            try:
                features = await self._features(batch)
            except Exception as error:  # the server continues; the requests answer 500
                _fail(batch, error)
                continue
            await self._search(batch, features)

    async def _collect(self) -> list[Waiting]:
        """What waits, once something does; and what is being decoded, if it takes no longer than
        `WAIT`."""
        batch = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT):
                while len(batch) < self._max_batch and (self._decoding or not self._queue.empty()):
                    batch.append(await self._queue.get())
        return [one for one in batch if not one.answer.cancelled()] or await self._collect()

    async def _features(self, batch: list[Waiting]) -> Tensor:
        loop, size = asyncio.get_running_loop(), self._chunk
        views = [one.views for one in batch]
        chunks = [views[begin : begin + size] for begin in range(0, len(views), size)]
        parts = [loop.run_in_executor(self._cnn, self._captioner.features, part) for part in chunks]
        return torch.cat(await asyncio.gather(*parts))

    async def _search(self, batch: list[Waiting], features: Tensor) -> None:
        size, parts = math.ceil(len(batch) / self._parts), []
        for settings in dict.fromkeys(one.settings for one in batch):
            rows = [row for row, one in enumerate(batch) if one.settings == settings]
            parts += [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        await asyncio.gather(
            *(self._search_part([batch[row] for row in rows], features[rows]) for rows in parts)
        )

    async def _search_part(self, alike: list[Waiting], features: Tensor) -> None:
        """Answer requests of the same settings."""
        self._observe(len(alike))
        loop = asyncio.get_running_loop()
        try:
            captions = await loop.run_in_executor(
                self._searcher, self._caption, features, alike[0].settings
            )
        except Exception as error:
            _fail(alike, error)
            return
        for one, caption in zip(alike, captions, strict=True):
            if not one.answer.done():
                one.answer.set_result(caption)

    def _caption(self, features: Tensor, settings: Settings) -> list[Caption]:
        return self._captioner.caption_features(
            features, settings.search, settings.alternatives, settings.attention
        )


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _fail(batch: list[Waiting], error: Exception) -> None:
    log.error("a batch of %d failed", len(batch), exc_info=error)
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(CaptionerError())
