"""The built site asks nothing of any other machine: by its files, and in a real browser where there is one."""

from __future__ import annotations

import contextlib
import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = "mkdocs", "mkdocstrings", "material", "latex2mathml"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Addresses in the theme's script, and what a page would have to hold for them to be asked.
DORMANT = {"https://unpkg.com/mermaid@": 'class="mermaid"', "https://api.github.com/": 'data-md-component="source"'}
# Only asked by browsers from before 2020, which have no ResizeObserver.
FOR_OLD_BROWSERS = "https://unpkg.com/resize-observer-polyfill"

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, SITE)), reason="the extra 'docs' is not installed; make docs installs it"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(html.parser.HTMLParser):
    """Collects what a browser fetches by itself when it opens a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        names = ["src", "srcset", "poster", "data"] + (["href"] if tag in ("link", "use", "image", "base") else [])
        if tag == "link" and said.get("rel") in ("canonical", "prev", "next"):
            return
        self.addresses += [said[name] for name in names if said.get(name)]
        self.addresses += addresses_in_style(said.get("style") or "")


def addresses_in_style(text):
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)


def is_elsewhere(address):
    return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", address.strip(), re.I))


def loaded_by(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return addresses_in_style(text)
    parser = Loaded()
    parser.feed(text)
    return parser.addresses


def test_no_page_loads_anything_from_elsewhere(site):
    pages = [path for ending in ("*.html", "*.css") for path in site.rglob(ending)]
    assert len(pages) > 20 and sum(len(loaded_by(path)) for path in pages) > 100
    assert {path.name: found for path in pages if (found := [*filter(is_elsewhere, loaded_by(path))])} == {}


def test_what_the_script_could_ask_it_is_never_asked(site):
    scripts = "".join(path.read_text() for path in (site / "assets" / "javascripts").glob("bundle*.js"))
    pages = "".join(path.read_text() for path in site.rglob("*.html"))
    asked = set(re.findall(r"""["'`](https?://[^"'`$\s]+)""", scripts)) - {"https://"}
    assert {address for address in asked if not address.startswith((*DORMANT, FOR_OLD_BROWSERS))} == set()
    assert not [needed for needed in DORMANT.values() if needed in pages]


def test_what_would_be_loaded_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="https://a.example/x.css"><script src="//b.example/x.js"></script>'
        '<img src="images/c.png"><p style="background: url(http://d.example/d.png)"><a href="https://e.example/">e</a>'
    )
    assert [re.split(r"/+", found)[1] for found in filter(is_elsewhere, loaded_by(page))] == [
        "a.example", "b.example", "d.example",
    ]  # fmt: skip


def test_equations_are_drawn(site):
    page = (site / "methods.html").read_text()
    assert page.count("<math") > 10 and "arithmatex" not in page and "\\frac" not in page


def test_every_page_of_ours_is_reachable(site):
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    start = (site / "index.html").read_text()
    missing = {page for page in built - {"404.html", "index.html"} if f'href="{page}"' not in start}
    assert missing <= {"gates.html", "scaling.html", "tuning.html"}


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def requests_of(log, origin):
    """Return the addresses that pages of an origin asked for, and not those the browser asks on its own behalf."""
    text = log.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("}") else text + "]}")["events"]
    said = [event["params"] for event in events if "url" in event.get("params", {})]
    return {params["url"] for params in said if str(params.get("initiator", "")).startswith(origin)}


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("page", ["index.html", "methods.html", "api/types.html"])
def test_a_browser_asks_this_machine_alone(site, tmp_path, page):
    with served(site) as origin:
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--log-net-log={tmp_path / 'log.json'}",
            "--virtual-time-budget=3000", "--dump-dom", f"{origin}/{page}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        asked = requests_of(tmp_path / "log.json", origin)
    assert "js-focus-visible" in done.stdout  # the theme's script has run
    assert any("search_index.json" in address for address in asked) and any(".css" in address for address in asked)
    assert [address for address in asked if not address.startswith((origin, "data:", "blob:"))] == []
