"""The report's page in a real browser: nothing is cut, the filter filters, what is folded opens, links lead somewhere.

Needs playwright (`pip install '.[browser]'`) and a Chromium: `chromium`, `google-chrome`, or one that
`playwright install chromium` fetched."""

import re

import pytest
from common import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.trains]

PAGE = ROOT / "reports" / "ablation" / "index.html"
WIDTHS = (1200, 420)
MOST_WORDS, MOST_BYTES = 12_000, 5_000_000
# Words of the page, of figures, too, and of what is folded once it is open; a hidden element has none.
WORDS = "document.body.innerText.split(/\\s+/).filter(Boolean).length"
OPEN_TABLES = "document.querySelectorAll('details.table').forEach(table => { table.open = true })"


@pytest.fixture
def opened(browser):
    """Opens the page in a width and colour scheme; what it complains about, and what it asks for, is none."""
    pages, complaints = [], []

    def open_page(width=1200, scheme="light", **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        page.set_default_timeout(180_000)  # a machine may be busy
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend([request.url] if request.url != PAGE.as_uri() else []))
        page.goto(PAGE.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_wide_as_the_window_and_has_the_colours_of_the_scheme(opened, width, scheme):
    page = opened(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400


def test_no_table_is_cut_in_a_wide_window(opened):
    page = opened(1200)
    page.evaluate(OPEN_TABLES)
    boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map(b => [b.id, b.scrollWidth, b.clientWidth])")
    assert len(boxes) > 10 and [box for box in boxes if box[1] > box[2] + 1] == []


def test_the_first_result_of_every_table_shows_on_a_phone_beside_a_first_column_that_stays(opened):
    page = opened(420)
    page.evaluate(OPEN_TABLES)
    ends = page.evaluate(
        """[...document.querySelectorAll('.scroll')].map(box => {
          const result = [...box.querySelectorAll('tbody tr:first-child td')].find(cell => !cell.matches('.text'));
          return [box.id, result ? result.getBoundingClientRect().right : 0];
        })"""
    )
    assert [end for end in ends if end[1] > 420] == []
    moved = page.evaluate(
        """[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 40).map(box => {
          const first = box.querySelector('td'), before = first.getBoundingClientRect().left;
          box.scrollLeft = 40;
          return Math.abs(first.getBoundingClientRect().left - before);
        })"""
    )
    assert moved and max(moved) < 2


@pytest.mark.parametrize("width", WIDTHS)
def test_every_claim_shows_its_sentence_its_plot_and_its_result(opened, width):
    page = opened(width)
    parts = page.evaluate(
        """[...document.querySelectorAll('.claim > summary')].map(row => ['.says', 'svg', '.here'].map(part =>
          (box => box.width > 0 && box.right <= innerWidth)(row.querySelector(part).getBoundingClientRect())))"""
    )
    assert len(parts) >= 14 and all(all(row) for row in parts)


def test_the_first_screen_has_the_limits_and_most_of_the_forest_plot(opened):
    page = opened(1200)
    assert page.evaluate("document.querySelector('#limits').getBoundingClientRect().bottom") < 300
    last = page.evaluate("[...document.querySelectorAll('.claim')].at(-1).getBoundingClientRect().bottom")
    assert last < 1300  # a screen and a half, were every claim to have six comparisons


def test_the_filter_shows_what_has_the_verdict_and_the_topic(opened):
    page = opened()
    shown = "[...document.querySelectorAll('.claim')].filter(c => c.offsetParent).map(c => c.dataset.{})"
    all_claims = page.evaluate(shown.format("verdict"))
    verdict = all_claims[0]
    page.click(f"#filter [data-verdict='{verdict}']")
    assert page.evaluate(shown.format("verdict")) == [v for v in all_claims if v == verdict]
    topic = page.evaluate(shown.format("topic"))[0]
    page.click(f"#filter [data-topic='{topic}']")
    assert set(page.evaluate(shown.format("topic"))) == {topic}
    sections = "[...document.querySelectorAll('.artefact')].filter(s => s.offsetParent)"
    left = page.evaluate(f"{sections}.map(s => [s.dataset.topic, s.dataset.verdicts.split('|')])")
    assert left and all(found[0] == topic and verdict in found[1] for found in left)
    for button in (f"[data-verdict='{verdict}']", f"[data-topic='{topic}']"):
        page.click(f"#filter {button}")
    assert page.evaluate(shown.format("verdict")) == all_claims


def test_tables_are_folded_and_open_one_by_one_or_all(opened):
    page = opened()
    closed = page.evaluate("[...document.querySelectorAll('details.table')].filter(t => !t.open).length")
    assert closed > 10
    page.click("details.table:not([open]) > summary")
    assert page.evaluate("[...document.querySelectorAll('details.table')].filter(t => !t.open).length") == closed - 1
    page.click("#open-tables")
    assert page.evaluate("[...document.querySelectorAll('details.table')].every(t => t.open)")


def test_every_link_leads_to_a_place_that_then_shows_or_to_a_file_of_the_repository(opened):
    page = opened()
    links = page.evaluate("[...new Set([...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')))]")
    inner = [link for link in links if link.startswith("#")]
    others = [link for link in links if not link.startswith(("#", "data:"))]
    assert len(inner) > 100 and [link for link in others if not (PAGE.parent / link).resolve().is_file()] == []
    hidden = page.evaluate(
        """links => links.filter(link => {
          const target = document.getElementById(link.slice(1));
          if (!target) return true;
          history.replaceState(null, '', link);
          dispatchEvent(new HashChangeEvent('hashchange'));
          return !target.getClientRects().length;
        })""",
        inner,
    )
    assert hidden == []


def test_a_verdict_leads_to_its_rows_its_runs_and_its_sweep(opened):
    page = opened()
    page.click("#claim-block_beats_bidir > summary")
    page.click("#claim-block_beats_bidir .effect > summary")
    hrefs = page.evaluate(
        "[...document.querySelectorAll('#claim-block_beats_bidir .evidence a')].map(a => a.getAttribute('href'))"
    )
    for start in ("#table1_attention-", "#run-", "#runs-table1_attention", "../../sweeps/table1_attention.yaml"):
        assert any(href.startswith(start) for href in hrefs), start
    page.click("#claim-block_beats_bidir .evidence a[href^='#table1_attention-']")
    page.wait_for_function("document.querySelector('tr:target').getBoundingClientRect().top < innerHeight")


def test_a_tap_on_a_point_shows_where_it_comes_from(opened):
    page = opened()
    point = page.locator("figure .tip").first
    point.scroll_into_view_if_needed()
    point.dispatch_event("click")
    said = page.inner_text("#tip")
    assert "runs: " in said and "python -m analysis.study sweeps/" in said
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_the_page_reads_without_javascript(opened):
    page = opened(java_script_enabled=False)
    assert page.is_hidden("#filter") and page.is_visible("#claim-block_beats_bidir svg")
    page.click("details.table:not([open]) > summary")
    assert page.is_visible("details.table[open] td")


def test_the_page_is_printed_light_and_without_its_navigation(opened):
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.is_hidden("#side") and page.is_hidden("#filter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_is_short_and_small(opened):
    page = opened()
    folded = page.evaluate(WORDS)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert 1000 < folded < page.evaluate(WORDS) < MOST_WORDS
    assert PAGE.stat().st_size < MOST_BYTES
