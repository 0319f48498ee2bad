"""The page of the design space is what the YAMLs say now, and they all say it in the same form."""

import re
from itertools import pairwise

import pytest
from common import CONF, ROOT

from analysis.site import design_space
from analysis.site.design_space import GROUPS, PAGE, page, with_options
from analysis.site.yamls import header, options, references, settings

FILES = [path for group in (*GROUPS, "recipe") for path in options(group)]


@pytest.fixture(scope="module")
def made():
    return page()


def comments(path):
    """All that the comments of a YAML say, as one line."""
    found = re.findall(r"(?:^|\s)#(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return " ".join(" ".join(found).split())


def row(text, first):
    """The cells of the row that begins with these."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return line.strip("| ").split(" | ")


@pytest.mark.trains
def test_the_committed_page_is_what_the_command_gives_now(made):
    assert made == PAGE.read_text(encoding="utf-8"), "make design-space"


@pytest.mark.trains
def test_the_page_has_every_option_and_every_recipe_once(made):
    for group in GROUPS:
        for path in options(group):
            assert len(re.findall(rf"\| `{group}` \| `{path.stem}`( \(default\))? \|", made)) == 1
    assert [made.count(f"| [{path.stem}](../conf/recipe/") for path in options("recipe")] == [1] * len(
        options("recipe")
    )
    assert all((PAGE.parent / target).is_file() for target in re.findall(r"\]\((\.\.[^)]+)\)", made))


def test_the_command_completes_the_table_of_the_readme_and_leaves_the_rest():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_options(readme) == readme
    row = next(line for line in readme.splitlines() if line.startswith("| `kernel` |"))
    lacking = row.replace("`mixture`, ", "").replace("`random`", "`gone`, `random`")
    assert with_options(readme.replace(row, lacking)) == readme.replace(
        row, row.replace("`mixture`, ", "").replace("`random`", "`random`, `mixture`")
    )


def test_the_table_of_the_readme_names_every_option():
    rows = re.findall(
        r"^\| (?:`(\w+)`)? *\| ([^|]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named, group = {}, ""
    for first, values in rows:
        group = first or group
        named.setdefault(group, set()).update(re.findall(r"`(\w+)`", values))
    for group in GROUPS:
        assert named[group] == {path.stem for path in options(group)}
    row = re.search(r"^\| `recipe` .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert all(f"`{path.stem}`" in row for path in options("recipe"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_file_says_what_it_is_and_every_paper_it_names_is_a_well_formed_reference(path):
    said, text = header(path), comments(path)
    assert 10 < len(said.what) < 200 and "arXiv" not in said.what
    assert len(said.papers) == text.count("arXiv")  # each in the form that the page understands
    assert all(re.fullmatch(r"\d\d(0[1-9]|1[0-2])\.\d{5}", number) for _, number in said.papers)
    named = set(re.findall(r"\b\d{4}\.\d{4,5}\b", text))
    assert named - {"0.0001"} <= {number for _, number in said.papers}
    of_its_own = path.stem == "small_budget" or said.what.startswith("Control: ")
    assert said.papers or path.parent.name != "recipe" or of_its_own


def test_a_name_is_always_the_same_paper():
    pairs = sorted({pair for path in FILES for pair in header(path).papers})
    assert all(a[0] != b[0] for a, b in pairwise(pairs))


def test_evidence_names_its_source_or_says_that_there_is_none():
    known = {name for path in FILES for name, _ in header(path).papers} | {"DiffusionVL"}
    found = [header(path).parts["Evidence"] for path in FILES if "Evidence" in header(path).parts]
    found += [s.evidence for path in [*FILES, CONF / "train.yaml"] for s in settings("", path) if s.evidence]
    for evidence in found:
        assert any(name in evidence for name in known) or evidence == "contested: no controlled comparison was found."
    assert len(found) > 30


@pytest.mark.trains
def test_a_recipes_row_is_its_composed_config(made):
    cells = row(made, "[dmax](../conf/recipe/dmax.yaml)")
    assert cells[1] == "[DMax](https://arxiv.org/abs/2604.08302)"
    expected = ["block", "uniform", "uniform", "absorb", "mean", "null", "prediction", "null", "soft", "full"]
    assert cells[2:12] == [f"`{option}`" for option in expected]
    assert "`masking.score=all`" in cells[12] and "`attention.noise_per=sequence`" in cells[12]
    assert "`model=tiny_random`" in row(made, "[untrained](../conf/recipe/untrained.yaml)")[12]


def test_a_header_by_hand(tmp_path):
    path = tmp_path / "option.yaml"
    path.write_text(
        "# @package _global_\n# It is: 2.0 of it (A B, arXiv 2501.00001: its\n# code; C, arXiv 2502.00002). More.\n"
        "# Evidence: some\n# of it (A B).\n# Ours: all.\n"
        "thing:\n  # Evidence: none (C).\n  size: 4  # of it\n  odd: 1\n"
    )
    said = header(path)
    assert said.what == "It is: 2.0 of it"
    assert said.papers == (("A B", "2501.00001"), ("C", "2502.00002"))
    assert said.parts == {"Evidence": "some of it (A B).", "Ours": "all."}
    (setting,) = settings("group", path)
    assert (setting.path, setting.default, setting.comment) == ("group.thing.size", "4", "of it")
    assert setting.evidence == "none (C)"
    assert references("D2 (arXiv 2503.00003): so.") == [("D2", "2503.00003")]


def test_a_file_without_a_header_is_named(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("_target_: dlm.kernel.absorb.Absorb\n")
    with pytest.raises(ValueError, match=r"bare.yaml has no header: begin it with a comment"):
        header(path)
    path.write_text("# Something.\nvalue: 1\n")
    with pytest.raises(ValueError, match=r"bare.yaml names no class of dlm"):
        design_space.code(path)
