"""The report: from one results file, byte for byte the same, whole in one page, and honest about what is not there."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from common import ROOT
from study_tables import Study, correct, whole_study

from analysis.artefacts import artefacts
from analysis.evidence.stats import Estimate
from analysis.pages import render
from analysis.pages.exhibits import Table, cell
from analysis.pages.plots import lines
from analysis.pages.provenance import quantity
from analysis.report import main, render_report
from analysis.tables.results import COLUMNS, Results, decode_texts, encode_texts

pytestmark = pytest.mark.trains

COMMITTED = ROOT / "reports" / "ablation"
VOID = {"meta", "br", "img", "link", "use", "path", "wbr"}
INSIDE = ("data:image/png;base64", "data:text/csv", "../../sweeps/")  # what the page holds, or names for the reader


class Balance(HTMLParser):
    """Whether every tag is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [value for key, value in attrs if key == "href" and tag == "a"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of the results of a study with all runs."""
    out = tmp_path_factory.mktemp("whole")
    whole_study().results.save(out / "results.json")
    return out


@pytest.fixture(scope="module")
def whole(saved):
    """The report of it, and its folder."""
    render_report(Results.load(saved / "results.json"), saved)
    return saved


@pytest.fixture(params=["committed", pytest.param("whole", marks=pytest.mark.slow)])
def report(request):
    """The folder of a report: the one that is there, and one that is rendered."""
    return COMMITTED if request.param == "committed" else request.getfixturevalue("whole")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The folder and the pages of a study of one seed, in which a run failed and two are missing, and of which a model
    wrote markup."""
    study, out = Study(), tmp_path_factory.mktemp("few")
    for name in ("<script>alert(1)</script>", "g"):  # the rows of Table 1 are the paper's
        point = study.point("table1_attention", name, label="a|b_$x$ & \\input{x}")
        study.own(point, 0.5)
    study.drift(point, 0.1)
    study.point("table1_attention", "d", state="failed")
    for seed in (1, 2):
        study.point("table1_attention", "e", seed, state="not trained")
    return out, rendered(study, out)


def rendered(study, out):
    """The pages of a study."""
    out.mkdir(exist_ok=True)
    study.results.save(out / "results.json")
    render_report(Results.load(out / "results.json"), out)
    return [(out / name).read_text() for name in ("index.html", "index.md", "index.tex")]


@pytest.mark.slow
def test_results_come_back_as_they_were_saved(whole, tmp_path):
    results = Results.load(whole / "results.json")
    results.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (whole / "results.json").read_bytes()
    original = whole_study().results
    for name, columns in COLUMNS.items():
        before, after = getattr(original, name), getattr(results, name)
        assert list(before.columns) == list(after.columns) and set(columns) <= set(after.columns)
        alike = (frame.astype(object).where(frame.notna(), None) for frame in (before, after))
        pd.testing.assert_frame_equal(*alike, rtol=1e-6)


@pytest.mark.slow
def test_the_report_is_made_again_byte_for_byte(whole, tmp_path):
    (tmp_path / "results.json").write_bytes((whole / "results.json").read_bytes())
    assert main(["--committed", "--out", str(tmp_path)]) == 0
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert sum(p.suffix == ".svg" for p in files) == sum(p.suffix == ".pdf" for p in files) > 20
    assert [p for p in files if (whole / p).read_bytes() != (tmp_path / p).read_bytes()] == []


@pytest.mark.parametrize(
    "column", [["a", None, "a", "a"], ["a", "b"], [1, "a", "a", "a"], [None, None], [], [0.5, None]]
)
def test_texts_that_come_again_are_written_once_and_read_as_they_were(column):
    short = encode_texts(column)
    assert decode_texts(short) == column
    assert isinstance(short, dict) == (column == ["a", None, "a", "a"])


def unlike_the_committed(out):
    """The files of the committed report that its results do not give, and those that they give besides. Figures count
    with the matplotlib that drew them: other versions draw the same otherwise."""
    alike = f"matplotlib=={matplotlib.__version__}\n" in (ROOT / "constraints.txt").read_text()
    drawn = () if alike else (".svg", ".pdf", ".html")
    render_report(Results.load(COMMITTED / "results.json"), out)
    made, there = ({p.relative_to(of) for p in of.rglob("*") if p.is_file()} for of in (out, COMMITTED))
    there.remove(Path("results.json"))
    compared = {p for p in made & there if p.suffix not in drawn}
    return (made ^ there) | {p for p in compared if (COMMITTED / p).read_bytes() != (out / p).read_bytes()}


@pytest.mark.slow  # `make smoke` runs it
def test_the_committed_report_is_what_its_results_give(tmp_path):
    """Else: make ablation-report FROM=committed."""
    assert unlike_the_committed(tmp_path) == set()
    assert (COMMITTED / "index.html").stat().st_size < 5e6
    assert sum(p.stat().st_size for p in COMMITTED.rglob("*") if p.is_file()) < 8e6


def test_the_page_is_whole_and_asks_the_network_for_nothing(report):
    page = (report / "index.html").read_text()
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    outside = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#|&quot;#)([^"\')\s>]+)', page)
    assert [link for link in outside if not link.startswith(INSIDE)] == []
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page and "@media print" in page


def test_ids_of_different_figures_do_not_meet(report):
    reader = Balance()
    reader.feed((report / "index.html").read_text())
    clips = [name for name in reader.ids if re.fullmatch(r"p[0-9a-f]{10}", name)]
    assert len(clips) == len(set(clips)) > 20


def test_every_artefact_and_claim_is_in_every_form_with_the_claims_first(report):
    for name in ("index.html", "index.md", "index.tex"):
        text = (report / name).read_text()
        text = text[max(0, text.find("<main")) :]  # after the navigation
        first = text.index("What the paper claims")
        for module in artefacts().values():
            title = module.TITLE.split(":")[0]
            assert text.index(render.latex(title) if name.endswith("tex") else title) > 0, (name, module.TITLE)
        assert first < text.index("tokens per second")
        assert "nan" not in re.findall(r"\b(?:nan|None|NaN|inf)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def emptied(few, tmp_path_factory):
    """As `few`, of a study without runs, whose report is rendered where that one was."""
    study, out = Study(), Path(shutil.copytree(few[0], tmp_path_factory.mktemp("emptied") / "report"))
    assert "<figure" in few[1][0] and len(list((out / "figures").glob("figure2e*"))) == 4
    study.point("table1_attention", "g", state="not trained")
    return out, rendered(study, out)


@pytest.mark.slow
def test_a_study_without_runs_says_so_everywhere_and_plots_nothing(emptied):
    for page in emptied[1]:
        assert page.count("No finished run") >= len(artefacts()) and "0 of 1 points" in page
        assert "<figure" not in page and "![" not in page and "\\includegraphics" not in page


def test_failed_and_missing_runs_are_named_with_what_they_said(few):
    html, text, tex = few[1]
    for page in (html, text):
        assert "1 run failed" in page and "no such thing" in page
        assert "e, seeds 1, 2: not trained" in page.replace("\\_", "_") and "d, seed 0: failed" in page
    assert "1 run failed" in tex


def test_one_seed_is_pointed_out(few):
    assert all("One seed (0)" in page for page in few[1])


@pytest.mark.slow
def test_runs_of_different_parents_or_code_are_pointed_out(tmp_path):
    study = Study()
    for i, name in enumerate("fg"):
        study.own(study.point("table1_attention", name, parent=f"f0{i}", commit=f"c{i}"), 0.5)
    for page in rendered(study, tmp_path)[:2]:
        assert (
            "from tiny converted 2 different weights" in page and "2 versions of the code" in page and "c0; c1" in page
        )


@pytest.mark.slow
def test_random_parents_differ_by_shape_and_seed_without_a_warning(tmp_path):
    study = Study()
    for i, (name, parameters, seed) in enumerate([("f", 100, 0), ("f", 100, 1), ("g", 200, 0)]):
        point = {"source": "random qwen3", "parameters": parameters, "parent": f"f0{i}"}
        study.own(study.point("table1_attention", name, seed=seed, **point), 0.5)
    assert not any("different weights" in page for page in rendered(study, tmp_path))
    again = {"source": "random qwen3", "parameters": 200, "parent": "f09"}
    study.own(study.point("table1_attention", "b", **again), 0.5)
    assert all("random qwen3 of 200, seed 0 converted 2 different" in page for page in rendered(study, tmp_path)[:2])


def test_what_was_not_measured_is_said_instead_of_an_empty_plot(tmp_path):
    study = Study()
    study.point("figure8_tokens", "times=1")
    html, text, _ = rendered(study, tmp_path)
    said = "Not measured of these runs: Likelihood and accuracy by training tokens."
    assert said in html and said in text


def test_a_new_report_leaves_nothing_of_an_earlier_one(emptied):
    assert list((emptied[0] / "figures").iterdir()) == []


def test_what_a_model_wrote_is_escaped(few):
    html, text, tex = few[1]
    assert html.count("<script") == 1 and "&lt;script&gt;" in html and "<script" not in text
    assert "\\input{x}" not in tex and "\\\\input{x}" in text and "a|b" not in text


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(report):
    for table in re.findall(r"(?:^\|.*\n)+", (report / "index.md").read_text(), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}
        assert len(counts) == 1, table


def test_the_figures_of_the_markdown_and_latex_are_there(report):
    shown = re.findall(r"!\[.*\]\((.*)\)", (report / "index.md").read_text())
    included = re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", (report / "index.tex").read_text())
    assert len(shown) == len(included) > 20 and all((report / name).exists() for name in shown + included)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_the_latex_compiles(whole):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "index.tex"]
    done = subprocess.run(command, cwd=whole, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    for path in whole.glob("index.*"):
        if path.suffix in (".aux", ".log", ".pdf"):
            path.unlink()


def test_the_latex_is_balanced_and_plain_ascii(report):
    text = (report / "index.tex").read_text()
    assert text.isascii()
    bare = re.sub(r"\\[{}\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert sorted(re.findall(r"\\begin\{(\w+)\}", text)) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert not re.search(r"(?<!\\)[#]", re.sub(r"\\newcommand.*?\\usebox\{\\exhibit\}\}", "", text, flags=re.DOTALL))


def test_an_svg_takes_the_ink_of_the_page_and_by_itself_that_of_the_readers_mode():
    rows = pd.DataFrame({"x": [1, 2], "y": [1.0, 2.0], "of": ["<a>", "<a>"]})
    made = render.svg(lines(rows, "x", "y", "of", "t"), "salt")
    assert "currentColor" in made and render.INK not in made and "&lt;a&gt;" in made
    assert "viewBox" in made[: made.index(">")] and "width=" not in made[: made.index(">")]
    alone = render.standalone(made)
    assert f"svg{{color:{render.INK}}}" in alone and "prefers-color-scheme:dark" in alone
    again = lines(rows, "x", "y", "of", "t")
    assert made == render.svg(again, "salt") != render.svg(again, "another")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(63.14, 58.0, 67.91, 3, 360), "63.1 (58.0 to 67.9; 3 × 360)"),
        (Estimate(63.14, seeds=1), "63.1 (1 seed)"),
        (Estimate(-0.5, -1.0, 0.1, 3), "−0.5 (−1.0 to 0.1; 3 seeds)"),
        (Estimate(8.0, 8.0, 8.0, 3), "8.0 (3 seeds)"),
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (12345, "12,345"),
        ("a", "a"),
    ],
)
def test_a_cell_says_its_value_its_interval_and_what_it_rests_on(value, text):
    assert cell(value).line == text


def test_the_same_cells_are_in_the_terminal_markdown_and_latex():
    table = Table(pd.DataFrame({"row": ["g"], "accuracy %": [Estimate(63.1, 58.0, 67.9, 3, 360)]}), "c")
    assert "| g | 63.1 (58.0 to 67.9; 3 × 360) |" in render.to_markdown(table)
    assert r"g & 63.1 {\tiny (58.0 to 67.9; 3 $\times$ 360)} \\" in render.to_latex(table)
    (row, accuracy) = render.to_terminal(table).columns
    assert [str(cell) for cell in (*row.cells, *accuracy.cells)] == [
        "g",
        "63.1\n58.0 to 67.9; 3 × 360",
    ] and accuracy.justify == "right"


@pytest.mark.parametrize(("value", "text"), [(6.37e12, "6.37 TFLOP"), (950, "950 FLOP"), (0, "0 FLOP"), (None, "–")])
def test_quantities_have_si_prefixes(value, text):
    assert quantity(value, "FLOP") == text


def test_damaged_or_absent_results_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="do not exist: collect them"):
        Results.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="are damaged"):
        Results.load(path)
    Study().results.save(path)
    content = json.loads(path.read_text())
    del content["runs"]["lr"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="table runs lacks lr: collect them again"):
        Results.load(path)


def test_show_prints_an_artefact_and_names_those_that_exist(saved, capsys):
    assert main(["--committed", "--out", str(saved), "--show", "table7_lr", "--show", "claims"]) == 0
    printed = capsys.readouterr().out
    assert "Table 7" in printed and "undecided" not in printed.split("claims")[0]
    with pytest.raises(SystemExit, match="2"):
        main(["--committed", "--out", str(saved), "--show", "table99"])
    said = capsys.readouterr().err
    assert "choose claims or one of" in said and "table1_attention" in said


def test_a_whole_study_of_many_items_stays_small(tmp_path):
    """360 outcomes are 90 characters."""
    study = Study()
    for i in range(100):
        study.own(study.point("table1_attention", f"p{i}"), 0.5, outcomes=correct(0.5, 360))
    study.results.save(tmp_path / "results.json")
    assert (tmp_path / "results.json").stat().st_size < 1500 * 100
