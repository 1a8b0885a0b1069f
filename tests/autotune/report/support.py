"""Entries to report on, and a reader of HTML that insists on well-formed pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from faops.autotune.cache.entry import Entry, Timing
from faops.device import known
from faops.registry import Config
from tests.autotune.support import make_entry

T4 = known("t4")
WITHOUT_END = ("br", "meta")


def timing(p50: float, kernel: str = "fake.forward", **options: int | str | bool) -> Timing:
    return Timing(kernel, Config(options), 0.9 * p50, p50, 1.2 * p50, 0.01 * p50, 10, noisy=False)


def tiles() -> Entry:
    """A kernel with tiles of 3 x 2 sizes and two numbers of warps, of which one failed and one was not tried."""
    times = {
        (64, 32, 4): 5.0, (64, 64, 4): 4.0, (128, 32, 4): 3.0, (128, 64, 4): 1.0, (256, 32, 4): 9.0,
        (64, 32, 8): 6.0, (64, 64, 8): 5.5, (128, 32, 8): 2.0, (128, 64, 8): 2.5,
    }  # fmt: skip
    timings = [timing(p50, tile_m=m, tile_n=n, warps=warps) for (m, n, warps), p50 in times.items()]
    return make_entry(
        T4,
        config=Config(tile_m=128, tile_n=64, warps=4),
        p50=1.0,
        default_config=Config(tile_m=64, tile_n=64, warps=4),
        default_p50=4.0,
        speedup=4.0,
        timings=(*timings, timing(7.0, "fake.other", threads=0)),
        dropped=({"config": "fake.forward [tile_m=256, tile_n=64, warps=4]", "reason": "too much shared memory"},),
    )


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, name: str, **attributes: str) -> list[Element]:
        """Every element below of that name with these attributes; class_ stands for class."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        below = [child for child in self.children if isinstance(child, Element)]
        found = [child for child in below if child.name == name and wanted.items() <= child.attributes.items()]
        return found + [item for child in below for item in child.all(name, **attributes)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in WITHOUT_END:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(text: str) -> Element:
    """The elements of a page; fails where one is not closed or closed in the wrong place."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, [element.name for element in reader.open]
    return reader.open[0]
