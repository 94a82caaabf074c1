"""The comparison page: all in one file, nothing of a name becomes HTML, and it fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from memlab.reports.comparison import page
from memlab.reports.comparison.canvas import MARKERS, PALETTE, look
from memlab.reports.comparison.groups import Comparison
from memlab.reports.comparison.runs import sort
from memlab.tracking.stored_runs import LeftOut, below, from_directory
from tests.reports.runs import run, text_run

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

NASTY = '<script>alert("x")</script>&$a$'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    place = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        run(place / f"a{seed}", "transformer_xl", seed, 0.9 + seed / 30, lengths={2: 1.0, 4: 0.9, 16: 0.2})
        run(place / f"b{seed}", "rmt", seed, 0.8)
        run(
            place / f"c{seed}",
            "transformer",
            seed,
            0.1,
            model__memory="a_very_long_value_of_a_setting_without_any_space_in_it",
            optim__lr=2e-3,
        )
        run(place / f"d{seed}", "transformer", seed, 0.11)
        run(place / f"e{seed}", NASTY, seed, 0.3)
    text_run(place / "t", "transformer", 0, 2.5)
    found = [from_directory(directory) for directory in below(place)]
    comparison = sort(
        NASTY, f"python -m memlab.compare 'experiment={NASTY}'", [*found, LeftOut(NASTY, f"is {NASTY}")]
    )
    return comparison, page.write(comparison, tmp_path_factory.mktemp("page"), "today")


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]


def test_nothing_comes_from_outside(made: tuple[Comparison, Path]) -> None:
    text = made[1].read_text()
    parsed = Parsed(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(parsed.tags)
    for key, value in parsed.attributes:
        if key in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#"), (key, value)
        assert not key.startswith("on")
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", re.sub(r"<code>.*?</code>", "", text))
    assert "default-src 'none'" in text


def test_names_are_text(made: tuple[Comparison, Path]) -> None:
    text = made[1].read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.count("&lt;script&gt;alert") > 10, "title, heading, groups, runs, left out"


def test_parts_of_figures_have_names_of_their_own(made: tuple[Comparison, Path]) -> None:
    parsed = Parsed(made[1].read_text())
    names = [value for key, value in parsed.attributes if key == "id"]
    used = {value[1:] for key, value in parsed.attributes if key == "href"}
    assert used <= set(names)


def test_all_is_there(made: tuple[Comparison, Path]) -> None:
    comparison, file = made
    text = file.read_text()
    assert {p.name for p in (file.parent / "figures").iterdir()} == {
        *(f"1_{name}.png" for name in ("seeds", "pareto", "segments", "loss_by_tokens", "loss_by_seconds")),
        *(f"2_{name}.png" for name in ("seeds", "pareto", "position", "loss_by_tokens", "loss_by_seconds")),
    }
    assert text.count("<figure") == 10
    for stored in comparison.runs:
        assert stored.name in text and stored.result["command"].partition("model=")[0] in text
    assert "a processor, 2 cores, 1 threads, no GPU (16 runs)" in text and "0123456789ab" in text
    assert "@media print" in text and "prefers-color-scheme:dark" in text


def test_groups_differ_in_more_than_colour() -> None:
    looks = [look(at) for at in range(len(MARKERS))]
    assert len({(style["color"], style["marker"]) for style in looks}) == len(looks)
    assert len(set(MARKERS)) == len(MARKERS) >= len(PALETTE)


@pytest.mark.parametrize("width", [400, 1200])
def test_no_horizontal_scroll_in_a_browser(made: tuple[Comparison, Path], width: int, tmp_path: Path) -> None:
    """The page in a frame of a phone's width, which says how wide its content is."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    # the measuring script is the frame's: the page itself allows none
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<iframe id=f style="width:{width}px;height:900px;border:0" src="{made[1].as_uri()}"></iframe>
        <p id=said>nothing</p>
        <script>onload = () => {{ const d = document.getElementById("f").contentDocument;
        const wide = [...d.querySelectorAll("body *")]
          .filter(e => !e.closest("svg") && !e.closest("thead") && !e.closest(".scroll"))
          .filter(e => e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName);
        const said = "scrollWidth=" + d.documentElement.scrollWidth + " wide=" + wide;
        document.getElementById("said").textContent = said; }}</script>"""
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
    ]
    command = [
        chromium,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"scrollWidth=(\d+) wide=([\w,]*)<", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    assert int(found[1]) <= width and found[2] == ""
