"""The report in a browser: nothing is blank, broken, in the console or wider than the screen."""

import contextlib
import io
import shutil

import numpy as np
import pytest
import test_report
from PIL import Image

from dvsnas_jax.report import page as report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra test)")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium-headless-shell)")
    with api.sync_playwright() as playwright:
        # The page is our own file; a container's root user has no sandbox.
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of one run, and of two that are not finished."""
    folder = tmp_path_factory.mktemp("whole")
    test_report._fill(folder)
    parts = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for part in parts:
        (part / "figures").mkdir()
        for file in ("config.json", "evaluation.json", "genotypes.jsonl", "figures/strip.npz"):
            (part / file).write_bytes((folder / file).read_bytes())
    report.write(folder)
    report.write(*parts)
    return {"one": folder / report.PAGE, "two": parts[0] / report.COMPARISON}


def _screenshot(page):
    """PNG of the whole page; a machine that is short of memory may need more than one try."""
    api = pytest.importorskip("playwright.sync_api")
    for _ in range(3):
        with contextlib.suppress(api.Error):
            return page.screenshot(full_page=True)
        page.wait_for_timeout(1000)
    return page.screenshot(full_page=True)


def _open(browser, path, width, scheme, messages):
    """The loaded page; what the console and the network complain of goes to `messages`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(180_000)
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("requestfailed", lambda request: messages.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("one", 390, "light"), ("one", 390, "dark"), ("one", 1280, "light"), ("one", 1280, "dark"),
        ("two", 360, "dark"), ("two", 1280, "light"),
    ],
)  # fmt: skip
def test_page_in_a_browser(browser, pages, name, width, scheme):
    messages = []
    page = _open(browser, pages[name], width, scheme, messages)
    try:
        num_images = page.evaluate("document.images.length")
        broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)")
        assert num_images == 7 * (2 if name == "two" else 1) and broken == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        wide = page.evaluate(
            "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height < 100).length"
        )
        assert wide == 0, "a figure collapsed"
        picture = np.asarray(Image.open(io.BytesIO(_screenshot(page))).convert("RGB"))
        assert messages == []
    finally:
        page.close()
    assert picture.shape[1] == width and picture.shape[0] > 3000
    paper = picture[:, 2].mean()
    assert (paper > 230) if scheme == "light" else (paper < 40)
    for band in np.array_split(picture, 12)[:10]:
        assert band.std() > 4, "a stretch of the page is blank"


def test_text_of_the_figures_stands_out(browser, pages):
    """Every text of a figure differs enough from the card it lies on, in both schemes (WCAG: 4.5, large 3)."""
    script = """() => {
      const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const card = light(getComputedStyle(document.querySelector('.figure')).backgroundColor);
      const onBox = /^(output|mean of|layer |new logits|of this frame)/;
      return [...document.querySelectorAll('svg text')].filter(t => !onBox.test(t.textContent))
        .map(t => { const own = light(getComputedStyle(t).fill);
          return [(Math.max(own, card) + 0.05) / (Math.min(own, card) + 0.05), t.textContent]; })
        .filter(pair => pair[0] < 4.5); }"""
    for scheme in ("light", "dark"):
        page = _open(browser, pages["one"], 1280, scheme, [])
        assert page.evaluate("document.querySelectorAll('svg text').length") > 50
        assert page.evaluate(script) == []
        page.close()
