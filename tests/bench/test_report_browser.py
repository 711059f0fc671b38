"""The page in a real browser: on a phone, in the dark, in print, and without complaints."""

from __future__ import annotations

import pytest
from browser import PROGRAM, Browser
from study_example import result

from hfaccel.bench.report import make_page
from hfaccel.bench.report.reading import read

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed")

# Boxes of a picture's parts in units of the picture, each with a name.
PANELS = """
[...document.querySelectorAll('svg.panel')].map(svg => {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  const shapes = [...svg.querySelectorAll('path, rect, circle, polygon')]
    .filter(shape => { const b = shape.getBBox(); return b.width > 0 || b.height > 0; });
  const texts = [...svg.querySelectorAll('text')].map(text => {
    const b = text.getBBox();
    return {text: text.lastChild.data, x: b.x, y: b.y, right: b.x + b.width, bottom: b.y + b.height};
  });
  return {name: svg.getAttribute('aria-label'), width: box.width, height: box.height, shapes: shapes.length,
          view: [view.width, view.height], texts};
})
"""

# The contrast of every text to what lies behind it. Text of a picture may lie on tiles of the picture.
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below, opacity) => [0, 1, 2].map(i => top[i] * opacity + below[i] * (1 - opacity));
  const light = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
                            return (x + 0.05) / (y + 0.05); };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.tagName === 'title' || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    let below = ground(svg || element), colour = style.color;
    if (svg) {
      colour = style.fill;
      const b = element.getBBox(), x = b.x + b.width / 2, y = b.y + b.height / 2;
      for (const rect of svg.querySelectorAll('rect')) {
        const r = rect.getBBox(), s = getComputedStyle(rect);
        if (s.fill !== 'none' && r.x <= x && x <= r.x + r.width && r.y <= y && y <= r.y + r.height)
          below = over(parse(s.fill), below, Number(s.fillOpacity));
      }
    }
    seen.push([ratio(parse(colour), below), node.data.trim().slice(0, 40)]);
  }
  return seen;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "report.html"
    page.write_text(make_page(read(result())), encoding="utf-8")
    browser = Browser(folder / "profile")
    browser.look(1280)
    browser.open(page)
    yield browser
    browser.close()


def test_nothing_is_complained_of_and_nothing_is_loaded(browser):
    assert browser.problems == []
    assert len(browser.requests) == 1 and browser.requests[0].endswith("report.html")


@pytest.mark.parametrize("width", [360, 1280])
def test_every_picture_is_drawn(browser, width):
    browser.look(width)
    panels = browser.evaluate(PANELS)
    assert len(panels) > 30
    for panel in panels:
        assert panel["width"] > 250 and panel["height"] > 60 and panel["shapes"] >= 2, panel["name"]


def test_texts_of_a_picture_lie_in_it_and_do_not_touch(browser):
    browser.look(1280)
    for panel in browser.evaluate(PANELS):
        width, height = panel["view"]
        for text in panel["texts"]:
            assert text["x"] >= -1 and text["right"] <= width + 1 and text["bottom"] <= height + 1, text
        assert [pair for pair in pairs(panel["texts"]) if touch(*pair)] == [], panel["name"]


def pairs(texts):
    return [(one, other) for place, one in enumerate(texts) for other in texts[:place]]


def touch(one, other):
    """Whether two boxes share more than a unit in both directions."""
    across = min(one["right"], other["right"]) - max(one["x"], other["x"])
    down = min(one["bottom"], other["bottom"]) - max(one["y"], other["y"])
    return across > 1 and down > 3  # boxes of letters reach above and below what is seen of them


def unfold(browser, opened):
    parts = "document.querySelectorAll('details').forEach(part => part.open = {})"
    browser.evaluate(parts.format(str(opened).lower()))


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_the_page_is_never_wider_than_a_phone(browser, width, opened):
    browser.look(width)
    unfold(browser, opened)
    assert browser.evaluate("document.documentElement.scrollWidth") == width


def test_letters_of_pictures_can_be_read_on_a_phone(browser):
    browser.look(360)
    least = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.panel text')]"
        ".map(text => text.getBoundingClientRect().height))"
    )
    assert least > 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser, scheme):
    browser.look(1280, scheme=scheme)
    seen = browser.evaluate(CONTRASTS)
    assert len(seen) > 1000
    assert [row for row in seen if row[0] < 4.5] == []


def test_the_dark_is_dark_and_print_is_not(browser):
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.look(1280, scheme="dark")
    assert browser.evaluate(ground) == "rgb(20, 23, 27)"
    browser.look(1280, scheme="dark", media="print")
    assert browser.evaluate(ground) == "rgb(255, 255, 255)"


def test_print_unfolds_the_numbers_and_leaves_out_the_links(browser):
    unfold(browser, False)
    browser.look(800, media="print")
    seen = "[...document.querySelectorAll('{}')].map(part => part.checkVisibility())"
    tables = browser.evaluate(seen.format("#numbers table"))
    assert len(tables) > 10 and all(tables)
    assert browser.evaluate(seen.format("nav, .unprinted")) == [False] * 4
    browser.look(1280)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-") and len(pdf) > 50_000


def test_screen_readers_get_pictures_and_tables_with_names(browser):
    browser.look(1280)
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    found = {}
    for node in nodes:
        found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value"))
    assert len(found["image"]) > 30 and all(found["image"])
    assert len(found["table"]) >= 5 and all(found["table"]) and all(found["rowheader"])
