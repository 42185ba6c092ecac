"""`python -m benchmarks.serving MODELS`: the server under load on loopback, beside the library."""

import http.client
import io
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from PIL import Image

from benchmarks.timing import HEADER, Row, machine
from pipeline.captioning.caption import Caption
from pipeline.captioning.captioner import Captioner
from pipeline.captioning.folder import load_folder
from pipeline.entrypoint import app, one_line_errors
from pipeline.images.names import is_image_name
from pipeline.runtime.device import resolve_device
from pipeline.runtime.errors import InputError

CLIENTS = (1, 8, 32)
MADE_UP = 64  # photos


@dataclass(frozen=True)
class Server:
    """A running `showtell serve`."""

    port: int
    pid: int

    def memory(self) -> float:
        """Resident megabytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start the server in a process of its own, as users do, and stop it."""
    call = [sys.executable, "-m", "pipeline", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().split(" at ")[1].split()[0]
            yield Server(urlsplit(address).port or 0, process.pid)
        finally:
            process.terminate()


def made_up_photos(count: int) -> list[bytes]:
    """JPEGs of Flickr8k's size that all differ."""
    photos = []
    for number in range(count):
        file = io.BytesIO()
        noise = Image.effect_noise((50, 38), 20 + 3 * number).resize((500, 375))
        Image.merge("RGB", (noise, noise.rotate(180), noise)).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos


def ask(
    server: Server, photos: Sequence[bytes], expected: Sequence[Caption], clients: int, count: int
) -> list[float]:
    """The seconds that each of `count` requests took, from clients that each wait for an answer
    before they ask again. An answer that is lost or not its own photo's is an error."""
    jobs = iter(islice(cycle(range(len(photos))), count))

    def work(_: int) -> list[float]:
        seconds, connection = [], http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        for job in jobs:
            began = time.perf_counter()
            headers = {"Content-Type": "image/jpeg"}
            connection.request("POST", "/api/caption", photos[job], headers)
            answer = json.loads(connection.getresponse().read())
            seconds.append(time.perf_counter() - began)
            score = expected[job].score
            assert score is not None
            if not math.isclose(answer.get("score", math.nan), score, abs_tol=1e-3):
                raise RuntimeError(f"not this photo's answer: {answer}")
        connection.close()
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return [one for seconds in pool.map(work, range(clients)) for one in seconds]


def rows(
    captioner: Captioner,
    server: Server,
    photos: Sequence[bytes],
    count: int,
    repeats: int,
    show: Callable[[str], None],
) -> Iterator[Row]:
    """Rates beside the library's, in rounds that alternate; latencies go to `show`."""
    expected = list(captioner.stream(photos))
    ask(server, photos, expected, max(CLIENTS), len(photos))  # warms up
    latencies: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    rates: dict[int, list[float]] = {clients: [] for clients in (0, *CLIENTS)}
    for _ in range(repeats):
        began = time.perf_counter()
        list(captioner.stream(islice(cycle(photos), count)))
        rates[0].append(count / (time.perf_counter() - began))
        for clients in CLIENTS:
            began = time.perf_counter()
            latencies[clients] += ask(server, photos, expected, clients, count)
            rates[clients].append(count / (time.perf_counter() - began))
    library = statistics.median(rates[0])
    for clients, seconds in latencies.items():
        *_, last = cuts = statistics.quantiles(seconds, n=100)
        show(f"{clients} clients: p50 {1000 * cuts[49]:.0f} ms, p99 {1000 * last:.0f} ms")
        rate = statistics.median(rates[clients])
        bar = "0.80" if clients == max(CLIENTS) else ""
        yield Row(f"served, {clients} clients", rate, "captions/s", "library", rate / library, bar)


def memory_row(server: Server, photos: Sequence[bytes], captioner: Captioner, count: int) -> Row:
    """The server's memory after many requests, beside that after a tenth of them."""
    expected = list(captioner.stream(photos))
    ask(server, photos, expected, max(CLIENTS), max(1, count // 10))
    before = server.memory()
    ask(server, photos, expected, max(CLIENTS), count - count // 10)
    after = server.memory()
    what = f"memory after {count:,} requests"
    return Row(what, after, "MB", f"after {count // 10:,}", after / before, "1.05")


def main(
    models: Annotated[Path, typer.Argument(help="The model's folder.")] = Path("models"),
    photos: Annotated[Path | None, typer.Option(help="A folder of photos; else made up.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Requests per round.")] = 320,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    memory: Annotated[int, typer.Option(min=0, help="Requests to watch the memory for.")] = 10_000,
) -> None:
    """Measure the server beside the library, and print a table of ratios."""
    device = resolve_device("auto")
    contents = made_up_photos(MADE_UP)
    if photos:
        contents = [one.read_bytes() for one in sorted(photos.iterdir()) if is_image_name(one.name)]
        if not contents:
            raise InputError(f"{photos} has no images")
    captioner = load_folder(models, device)
    print(f"{machine(device)}; medians of {repeats} interleaved rounds\n\n{HEADER}", flush=True)
    with serving(models) as server:
        notes: list[str] = []
        for row in rows(captioner, server, contents, count, repeats, notes.append):
            print(row.markdown(), flush=True)
        if memory:
            print(memory_row(server, contents, captioner, memory).markdown(), flush=True)
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    benchmark = app()
    benchmark.command()(main)
    with one_line_errors():
        benchmark()
