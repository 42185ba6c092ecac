"""What is installed is what constraints.txt pins, exactly; nothing comes along unpinned."""

import re
from importlib.metadata import distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
}
# Of every environment's own making, and of no requirement's.
OWN = {"pip", "setuptools", "wheel", "showtell"}


def test_every_line_is_an_exact_pin_without_an_address() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+( *;.*)?", one) for one in entries)
    assert len(PINS) == len(entries)


def test_all_that_is_needed_is_pinned_however_deep() -> None:
    """From our own requirements on, extras included, as far as this environment has them."""
    installed = {canonicalize_name(one.name): one for one in distributions()}
    left, seen = [("showtell", frozenset({"dvc", "val"}))], set[str]()
    while left:
        name, extras = left.pop()
        for line in installed[name].requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": one}) for one in (extras or {""})):
                continue
            needed = canonicalize_name(requirement.name)
            if needed not in seen and needed in installed:
                seen.add(needed)
                left.append((needed, frozenset(requirement.extras)))
    assert len(seen) > 50
    unpinned = sorted(seen - PINS.keys() - OWN)
    assert not unpinned
    other = {one for one in seen & PINS.keys() if installed[one].version != PINS[one]}
    assert not other
