"""The built book in a real browser: each page at the width of a phone and of a desk, all that a visit shows checked.

Needs Chromium, which these tests never install: without one they are skipped, and fail where CI is set.
"""

import functools
import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import axe_playwright_python
import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
ASPECTS = ("accessibility", "console", "headings", "images", "mathematics", "overflow", "requests", "speed", "weight")
WIDTHS = {"desk": 1280, "phone": 390}
MEGABYTES = 3.0  # of a page with all it loads, sent compressed
SECONDS = 1.5  # until a page has painted its largest part; allowed is twice that, as the test's machine may be busy
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

# An audit takes seconds where thousands of nodes look alike. Left out: formulas, which are MathJax's, code after the
# second block, rows after the fifth.
STRIP = """() => {
  document.querySelectorAll("mjx-container").forEach(formula => formula.replaceWith("x"));
  [...document.querySelectorAll("div.highlight")].slice(2).forEach(code => code.replaceWith("code"));
  document.querySelectorAll("tbody tr:nth-child(n + 6)").forEach(row => row.remove());
}"""
AUDIT = """async () => {
  const {violations} = await axe.run({preload: false, resultTypes: ["violations"]});
  const grave = violations.filter(({impact}) => impact === "serious" || impact === "critical");
  return grave.flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html.slice(0, 200)}`));
}"""
RENDERED = """() => window.MathJax?.startup?.promise && MathJax.startup.promise.then(
  () => Promise.all([...document.images].map(image => (image.loading = "eager", image.decode().catch(() => null)))))"""
PAINTED = """() => new Promise(resolve => {
  new PerformanceObserver(list => resolve(list.getEntries().at(-1).startTime / 1000))
    .observe({type: "largest-contentful-paint", buffered: true});
})"""
LOOK = r"""() => {
  const shown = element => element.checkVisibility();
  const all = selector => [...document.querySelectorAll(selector)];
  const outer = element => element.outerHTML.slice(0, 200);
  const levels = all("h1, h2, h3, h4, h5, h6").filter(shown).map(heading => Number(heading.tagName[1]));
  const text = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const raw = [];
  for (let node; (node = text.nextNode()); ) {
    const inside = node.parentElement.closest("script, style, pre, code, mjx-container");
    if (!inside && /\\[(\[]|\$\$|\\[a-zA-Z]{2,}/.test(node.data)) raw.push(node.data.slice(0, 200));
  }
  return {
    mathematics: [
      ...all(".math").filter(math => !math.querySelector("mjx-container")).map(outer),
      ...all("mjx-merror, [data-mjx-error]").map(outer),
      ...raw,
    ],
    images: all("img").filter(({alt, naturalWidth}) => !alt.trim() || !naturalWidth).map(outer),
    overflow: document.documentElement.scrollWidth > innerWidth ? [`${document.documentElement.scrollWidth} px`] : [],
    headings: [
      ...(levels.filter(level => level === 1).length === 1 ? [] : [`h1 in ${levels}`]),
      ...levels.flatMap((level, i) => (level > (levels[i - 1] ?? 0) + 1 ? [`h${level} at ${i} in ${levels}`] : [])),
    ],
  };
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def serve():
    """A function: folder -> the address at which it is served."""
    servers = []

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no browser: `apt-get install chromium` installs one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # it loads our pages only
        yield browser
        browser.close()


@functools.cache
def compressed(path: Path) -> int:
    """Bytes of a file as a host that compresses sends it."""
    return len(gzip.compress(path.read_bytes()))


def visit(browser, folder, address, name, theme):
    """{aspect: what is wrong with it} of one page, loaded wide and then narrowed; an empty list is right."""
    page = browser.new_page(viewport={"width": WIDTHS["desk"], "height": 844})
    requests, console = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: console.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.goto(f"{address}/{name}")
    painted = page.evaluate(PAINTED)
    page.evaluate(RENDERED)
    found = {aspect: [] for aspect in ASPECTS}
    for width, pixels in WIDTHS.items():
        if page.viewport_size["width"] != pixels:
            page.set_viewport_size({"width": pixels, "height": 844})
            page.wait_for_timeout(500)  # the theme waits before it adapts
        for aspect, wrong in page.evaluate(LOOK).items():
            found[aspect] += [f"{width}: {one}" for one in wrong]
    page.evaluate(STRIP)
    page.evaluate(AXE)
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    found["accessibility"] += [f"{theme}: {one}" for one in page.evaluate(AUDIT)]
    page.close()
    found["console"] += console
    found["requests"] += [url for url in requests if not url.startswith((f"{address}/", "data:", "blob:"))]
    own = {folder / urlsplit(url).path[1:] for url in requests if url.startswith(f"{address}/")}
    weight = sum(compressed(path) for path in own if path.is_file()) / 1e6
    found["weight"] += [f"{weight:.2f} MB"] if weight > MEGABYTES else []
    found["speed"] += [f"{painted:.2f} s"] if painted > 2 * SECONDS else []
    return found


@pytest.fixture(scope="module")
def visits(browser, site, serve):
    """{page: what is wrong with it} of every page of the site, audited in the light and the dark theme by turns."""
    address = serve(site)
    pages = [*sorted(site.glob("book/*.html")), site / "search.html", site / "genindex.html"]
    names = [str(path.relative_to(site)) for path in pages]
    return {name: visit(browser, site, address, name, ("light", "dark")[i % 2]) for i, name in enumerate(names)}


FAULTY = """<!doctype html><html lang=en><title>Faulty</title><body style="width: 3000px">
<script>throw new Error("on purpose")</script><script src="http://localhost:9/elsewhere.js"></script>
<h1>One</h1><h3>Three</h3><p style="color: #eee; background: #fff">A pale word and \\(\\frac12\\).</p>
<div class="math">\\[x^2\\]</div><img src="missing.png" alt="broken"><img src="heavy.gif">
<script>window.MathJax = {startup: {promise: new Promise(resolve => addEventListener("load", resolve))}}</script>
<script>const until = performance.now() + 3100; while (performance.now() < until);</script></html>"""


@pytest.fixture(scope="module")
def faulty(browser, serve, tmp_path_factory):
    """What is found on a page that has every fault."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "page.html").write_text(FAULTY)
    (folder / "heavy.gif").write_bytes(os.urandom(int(1.1e6 * MEGABYTES)))
    return visit(browser, folder, serve(folder), "page.html", "light")


@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_page_is_sound(visits, aspect):
    assert len(visits) > 10
    wrong = [f"{name}: {one}" for name, found in visits.items() for one in found[aspect]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_faulty_page_is_found_out(faulty, aspect):
    assert faulty[aspect]


@pytest.fixture
def page(browser, site, serve):
    """The front page of the site, at the width of a desk."""
    page = browser.new_page(viewport={"width": WIDTHS["desk"], "height": 844}, color_scheme="light")
    page.goto(f"{serve(site)}/book/intro.html")
    yield page
    page.close()


def test_the_search_finds_a_theorem_by_its_name(page):
    (name,) = re.findall(r"\{prf:theorem\} (Margin of .*)", (ROOT / "book" / "01_linear.md").read_text())
    page.goto(f"{page.url.removesuffix('book/intro.html')}search.html?q={quote(name)}")
    page.wait_for_selector("#search-results li a")
    links = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
    assert any("book/01_linear.html" in link for link in links)


def test_the_theme_button_turns_the_page_dark(page):
    look = "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    seen = set()
    for _ in range(3):  # it goes through auto, light, dark
        theme, ground = page.evaluate(look)
        seen.add((theme, sum(map(int, re.findall(r"\d+", ground)[:3])) < 128))
        page.locator("button.theme-switch-button:visible").first.click()
    assert seen == {("light", False), ("dark", True)}


def test_a_wide_figure_scrolls_within_itself_on_a_phone(page):
    page.goto(page.url.replace("intro", "01_linear"))
    page.set_viewport_size({"width": WIDTHS["phone"], "height": 844})
    scrolled, text, screen = page.evaluate(
        """() => {
          const figure = document.querySelector("figure:has(> img)");
          figure.scrollLeft = 1000;
          return [figure.scrollLeft, figure.querySelector("figcaption").getBoundingClientRect().x, scrollX];
        }"""
    )
    assert scrolled > 50 and text >= 0 and screen == 0


@pytest.mark.parametrize("known", [False, True])
def test_buttons_appear_once_the_repository_has_an_address_and_lead_to_the_pair(tmp_path, known):
    setting = (ROOT / "_config.yml").read_text()
    if known:
        setting = re.sub("^#(?=repository|html|launch_buttons)", "", setting, flags=re.MULTILINE)
        setting = setting.replace("OWNER/NAME", "someone/report")
    (tmp_path / "_config.yml").write_text(setting)
    (tmp_path / "_toc.yml").write_text("{format: jb-book, root: book/cost}")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    for name in ("cost.ipynb", "references.bib"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book")
    build = [Path(sys.executable).with_name("jupyter-book"), "build", "."]  # its links to other pages lead nowhere here
    result = subprocess.run(build, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    html = (tmp_path / "_build" / "html" / "book" / "cost.html").read_text()
    home = "https://github.com/someone/report"
    buttons = (
        f'"{home}"',
        f'"{home}/edit/main/book/cost.md"',
        f'"{home}/issues/new?',
        '"https://mybinder.org/v2/gh/someone/report/main?urlpath=lab/tree/book/cost.ipynb"',
        '"https://colab.research.google.com/github/someone/report/blob/main/book/cost.ipynb"',
    )
    assert [button in html for button in buttons] == [known] * len(buttons)
    assert "OWNER/NAME" not in html
    assert 'href="../_sources/book/cost.ipynb"' in html  # to download
