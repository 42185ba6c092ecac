"""The server's metrics, in Prometheus' text format."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts values by bucket."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.latency = Histogram(SECONDS)  # of captions that were answered
        self.batches = Histogram(SIZES)

    def text(self, taken: int, places: int) -> str:
        """
        Args:
            taken: requests that hold a place.
            places: how many there are.
        """
        return "\n".join(self._lines(taken, places)) + "\n"

    def _lines(self, taken: int, places: int) -> Iterator[str]:
        yield from _head("showtell_requests_total", "counter", "Answered requests.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'showtell_requests_total{{path="{path}",status="{status}"}} {count}'
        for name, histogram, about in (
            ("showtell_caption_seconds", self.latency, "From a request's head to its caption."),
            ("showtell_batch_size", self.batches, "Images that were searched together."),
        ):
            yield from _head(name, "histogram", about)
            yield from histogram.lines(name)
        for name, value, about in (
            ("showtell_queue_length", taken, "Requests that hold a place."),
            ("showtell_queue_places", places, "Places."),
        ):
            yield from _head(name, "gauge", about)
            yield f"{name} {value}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
