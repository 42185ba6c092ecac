"""A served captioner: a real server on loopback, in a thread of the test's process."""

import io
import math
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.captioning.captioner import Captioner
from pipeline.captioning.folder import load_folder
from pipeline.decoders.captioner_file import TrainedDecoder, read_model, write_model
from pipeline.decoders.registry import build_decoder
from pipeline.demo.shapes import random_shapes, render
from pipeline.evaluation.confidence import Confidence
from pipeline.serving.app import Service
from pipeline.serving.server import Server, address, listen
from tests.conftest import Artifacts

CPU = torch.device("cpu")


@contextmanager
def serving(captioner: Captioner, folder: Path, **options: Any) -> Iterator["Served"]:
    """Serve until the block ends, and then stop gracefully."""
    service = Service(captioner, folder, **options)
    server = Server(service)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        with httpx.Client(base_url=address(listening), timeout=60) as client:
            try:
                yield Served(server, service, client, address(listening))
            finally:
                client.close()
                server.should_exit = True
                thread.join(timeout=60)
        assert not thread.is_alive()


class Served:
    """A running server as tests meet it."""

    def __init__(self, server: Server, service: Service, client: httpx.Client, url: str) -> None:
        self.server, self.service, self.client, self.url = server, service, client, url
        self.port = client.base_url.port or 80

    def post(
        self, content: Any, kind: str = "application/octet-stream", **params: Any
    ) -> httpx.Response:
        headers = {"Content-Type": kind}
        return self.client.post("/api/caption", content=content, headers=headers, params=params)

    def wait_until_idle(self) -> None:
        """Wait until no request holds a place."""
        while self.service.batcher.taken:
            time.sleep(0.01)


HEAD = (
    b"POST /api/caption HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: image/png\r\nContent-Length: 999\r\n"
)


def raw(port: int, content: bytes) -> socket.socket:
    """Open a connection and send this much of a request."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(content)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection: one `recv` may be a part of it."""
    return b"".join(iter(lambda: connection.recv(10_000), b""))


def scene(seed: int, side: int = 128) -> bytes:
    """A PNG of two shapes, another one for each seed."""
    rng = random.Random(seed)
    image = render(random_shapes(rng, 2), rng).resize((side, side * 3 // 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_scenes(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        image = Image.open(io.BytesIO(scene(seed)))
        exif = Image.Exif()
        exif[0x010F] = "a camera's name"
        image.save(folder / f"{seed}.jpg", exif=exif)
    return folder


def is_same(answer: dict[str, Any], caption: Any) -> bool:
    """Whether an answer of the API is this caption; the score tells images apart."""
    same = math.isclose(answer["score"], caption.score, abs_tol=2e-4)
    return answer["caption"] == caption.text and same


def captioner_of(tiny: Artifacts) -> Captioner:
    return load_folder(tiny.folder / "models", CPU)


def attending(tiny: Artifacts, folder: Path) -> Captioner:
    """A captioner with attention and confidence; not trained, for that takes seconds."""
    model = read_model(tiny.model, CPU)
    shape = (2, 2, model.decoder.config.feature_shape[-1])
    config = replace(model.decoder.config, decoder="spatial_attention", feature_shape=shape)
    torch.manual_seed(1)
    decoder = build_decoder(config)
    with torch.no_grad():  # decided, and so different for different images
        for parameter in decoder.parameters():
            parameter.mul_(2)
    recipe = replace(model.recipe, layer="grid")
    path = folder / "attending.safetensors"
    write_model(path, TrainedDecoder(decoder, model.vocabulary, recipe, model.split_digest, 12))
    captioner = Captioner(tiny.backbone, [path], CPU)
    sure = Confidence(("",), captioner.search, "human", 100.0, 10, 1.0, (0.0, 0.0, 0.0))
    captioner.confidence = sure
    return captioner


@pytest.fixture(scope="session")
def served(tiny: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model, without attention."""
    with serving(captioner_of(tiny), tiny.folder / "models") as server:
        yield server


def attention_of(answer: dict[str, Any]) -> np.ndarray:
    return np.array([token["attention"] for token in answer["tokens"]])
