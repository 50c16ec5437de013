"""The page in a real browser: Debian's Chromium, headless, driven by Playwright. Part of make test-full."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.clusters import need
from tests.test_analysis import sweep, table, write
from tests.test_page import EVIL, thousand

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Told from inside the page: breaches of its policy, and how long a click takes until what follows from it is laid out.
WATCH = """
window.breaches = [];
document.addEventListener("securitypolicyviolation", (e) => window.breaches.push(e.effectiveDirective));
window.clicked = (element) => {
  const begun = performance.now();
  element.click();
  document.body.offsetHeight;
  return performance.now() - begun;
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need(CHROMIUM, "chromium (apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        need(None, "playwright (the extra `browser`)")
    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield opened
        opened.close()


class Opened:
    """A page, and all that went wrong with it."""

    def __init__(self, browser: Any, file: Path, width: int = 1200, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def is_clean(self) -> bool:
        assert self.wrong == []
        assert self.page.evaluate("window.breaches") == []
        assert [url for url in self.requests if not url.startswith("file://")] == []
        return len(self.requests) == 1


def rich() -> pd.DataFrame:
    """Two bases, two data, two filters, tokens that are not in step with sizes."""
    both = pd.concat([sweep(b, d) for b in ("pocket-m", "pocket-s") for d in ("few", "many")])
    both = both.drop_duplicates(["path", "filter"])
    return both.assign(tokens=both["size"] ** 2 * 7.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write(rich(), folder, hypothesis="Style is cheap.")
    return folder / "report.html"


def shown(page: Any, what: str) -> int:
    return int(
        page.evaluate(f"[...document.querySelectorAll({what!r})].filter((e) => e.getClientRects().length).length")
    )


def test_it_opens_without_a_word_or_a_request(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    assert shown(opened.page, "#live .panel svg") == 2
    assert shown(opened.page, ".still svg") == 0, "the drawn figures make room"
    assert opened.is_clean()


def test_without_scripts_the_drawn_figures_stay(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".still svg").first.is_visible()
    assert not page.locator("#live").is_visible()
    assert not page.locator("#theme").is_visible()
    assert not page.locator("#filter").is_visible()


def test_toggles_hide_what_they_name_and_bring_it_back(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    lines = "#live g.line polyline"
    button = opened.page.locator("button[data-key='base:pocket-s']")
    before = shown(opened.page, lines)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert shown(opened.page, lines) == before / 2
    button.focus()
    opened.page.keyboard.press("Enter")
    assert shown(opened.page, lines) == before
    button.click(modifiers=["Shift"])
    assert shown(opened.page, lines) == before / 2
    assert opened.page.locator("button[data-key='base:pocket-m']").get_attribute("aria-pressed") == "false"
    whiskers = shown(opened.page, "#live .whisker")
    opened.page.locator("button[data-key='intervals']").click()
    assert whiskers > 0
    assert shown(opened.page, "#live .whisker") == 0
    assert opened.is_clean()


def test_switches_move_the_points(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)

    def places() -> list[str]:
        return list(
            opened.page.evaluate(
                "[...document.querySelectorAll('#live polyline')].map((p) => p.getAttribute('points'))"
            )
        )

    def choose(words: str) -> list[str]:
        opened.page.locator(".choice button", has_text=words).first.click()
        return places()

    sizes = places()
    tokens = choose("target tokens")
    assert len(tokens) == len(sizes)
    assert tokens != sizes
    assert "target tokens" in opened.page.locator("#live figcaption").inner_text()
    linear = choose("linear")
    assert linear != tokens
    assert choose("log") == tokens
    assert choose("examples") == sizes
    titles = opened.page.locator(".panel h3").all_inner_texts()
    choose("data")
    assert opened.page.locator(".panel h3").all_inner_texts() != titles, "panels for bases, as colours tell data"
    choose("flexible")
    assert "flexible-extract" in opened.page.locator(".panel p").first.inner_text()
    assert opened.is_clean()


def test_a_point_tells_its_score_interval_seeds_and_items(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    svg = opened.page.locator(".panel svg").first
    svg.focus()
    opened.page.keyboard.press("ArrowRight")
    said = opened.page.locator(".tip").inner_text()
    for words in ("pocket-m, sft, on few", "10 examples: 0.205", "95% interval 0.", "2 seeds, 200 items", "tokens"):
        assert words in said, words
    opened.page.keyboard.press("ArrowRight")
    assert "100 examples" in opened.page.locator(".tip").inner_text()
    opened.page.keyboard.press("ArrowDown")
    assert "pocket-s, sft, on few" in opened.page.locator(".tip").inner_text()
    opened.page.keyboard.press("Escape")
    assert not opened.page.locator(".tip").is_visible()
    x, y = opened.page.evaluate(
        "(() => { const p = document.querySelector('.panel svg g.line path:last-of-type').getBoundingClientRect();"
        "return [p.x + p.width / 2, p.y + p.height / 2]; })()"
    )
    opened.page.mouse.move(x, y)
    assert opened.page.locator(".tip").is_visible(), "and under the mouse"
    assert opened.is_clean()


def test_dark_follows_the_system_and_the_switch(browser: Any, file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    opened = Opened(browser, file, color_scheme="dark")
    dark = opened.page.evaluate(paper)
    opened.page.locator("#theme").click()
    light = opened.page.evaluate(paper)
    assert dark != light
    assert Opened(browser, file, color_scheme="light").page.evaluate(paper) == light
    assert opened.is_clean()


@pytest.mark.parametrize("width", [320, 375, 768])
def test_a_narrow_screen_never_scrolls_sideways(browser: Any, file: Path, width: int) -> None:
    opened = Opened(browser, file, width=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.is_clean()


def test_the_table_sorts_and_filters(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    column = opened.page.locator("#table th").all_inner_texts().index("score")
    read = f"[...document.querySelectorAll('#table tbody tr')].map((r) => parseFloat(r.cells[{column}].textContent))"
    opened.page.locator("#table th button", has_text="score").click()
    scores = opened.page.evaluate(read)
    assert scores == sorted(scores)
    opened.page.locator("#table th button", has_text="score").click()
    assert opened.page.evaluate(read) == sorted(scores, reverse=True)
    assert opened.page.locator("#table th", has_text="score").get_attribute("aria-sort") == "descending"
    opened.page.locator("#filter").fill("pocket-s many 1,000")
    assert shown(opened.page, "#table tbody tr") == 2
    assert opened.page.locator("#shown").inner_text().startswith("2 of ")
    assert opened.is_clean()


def test_a_thousand_cells_answer_at_once(browser: Any, tmp_path: Path) -> None:
    write(thousand(), tmp_path)
    opened = Opened(browser, tmp_path / "report.html")
    for what, limit in (
        ("button[data-key='base:base-1']", 200), ("button[data-key='intervals']", 200), ("#table th button", 200),
        (".choice button[aria-pressed=false]", 600),
    ):  # fmt: skip
        times = [opened.page.evaluate(f"window.clicked(document.querySelector({what!r}))") for _ in range(5)]
        assert sorted(times)[1] < limit, (what, times)  # not the first, nor one that had to wait for another process
    assert opened.is_clean()


def test_names_of_strangers_stay_names(browser: Any, tmp_path: Path) -> None:
    frames = [sweep(base=name, data=name).assign(base_note=name, variant=name) for name in EVIL]
    write(pd.concat(frames), tmp_path, sweep=EVIL[0], command=EVIL[0], hypothesis=EVIL[1])
    opened = Opened(browser, tmp_path / "report.html")
    opened.page.on("dialog", lambda dialog: opened.wrong.append(dialog.message))
    assert opened.page.evaluate("document.scripts.length") == 2
    assert opened.page.locator("#live .legend button").filter(has_text="alert(1)").count() > 0
    opened.page.locator(".panel svg").first.focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator(".tip").is_visible()
    assert opened.is_clean()


def test_one_point_and_no_interval_are_drawn_too(browser: Any, tmp_path: Path) -> None:
    write(table([{**sweep().iloc[2].to_dict(), "stderr": float("nan"), "score": 21.5}]), tmp_path)
    opened = Opened(browser, tmp_path / "report.html")
    opened.page.locator(".panel svg").first.focus()
    opened.page.keyboard.press("ArrowRight")
    assert "interval not known" in opened.page.locator(".tip").inner_text()
    assert opened.is_clean()
