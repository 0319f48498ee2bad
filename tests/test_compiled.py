"""What is compiled, how often, and that nothing breaks a graph: with Lightning imported and nothing replaced."""

import pytest
import torch
from common import said_by

from dlm.attention.block_sparse import compiled_flex_attention, kernel_options
from dlm.attention.compilation import VERSIONS


@pytest.mark.trains
@pytest.mark.compiles
def test_a_compiled_step_gives_the_same_and_one_version_serves_every_layer_and_every_number_of_a_rule():
    """Three graphs of a step: a layer, what comes before the network and what comes after it, and one of the masks. A
    second of each for the last sequence, and one of what comes after for another class of rules. With images they are
    as many, and with windows in some layers two more. A layer in training is one graph whatever the masks. Nothing
    breaks a graph."""
    found = said_by("compiled.py", "ordinary")
    assert found["training_layer"] == {"graphs": 1, "breaks": 0}
    assert found["tokens"]["breaks"] == 0
    threshold, other_threshold, one, two, four = found["tokens"]["graphs"]
    assert threshold == other_threshold <= 2 * 4
    assert one == two == four <= threshold + 2
    seen = found["pictures"]
    assert 0 < seen["qwen3_vl"]["graphs"] <= 2 * 4 and 0 < seen["gemma3"]["graphs"] <= 2 * 6
    assert not any(family["breaks"] for family in seen.values())


@pytest.mark.slow
def test_the_points_of_the_decoding_benchmark_need_few_versions():
    """k tokens per step are numbers, not versions. Large batches have a version without pending rows."""
    found = said_by("compiled.py", "points")
    assert found["breaks"] == 0
    graphs = {(dtype, batch, k): count for dtype, batch, k, count in found["graphs"]}
    assert len(graphs) == 24
    assert all(count == 0 for (_, _, k), count in graphs.items() if k in (2, 4))
    assert max(graphs.values()) <= 8 and sum(graphs.values()) <= 56  # a layer and three parts, twice where large


@pytest.mark.slow
def test_a_compiled_layer_copies_no_cache():
    """Read in the generated code: no buffer is as large as the keys of the cache."""
    found = said_by("compiled.py", "cache_copies")
    assert found["largest"] < found["cache"] / 8


def test_the_kernel_for_few_rows_is_not_taken_where_it_has_no_configuration():
    """Its one tile holds the rows of all heads of a key, and must fit into a tile of the mask."""
    forced = {"FORCE_USE_FLEX_ATTENTION": True}
    assert kernel_options(64, 4) == kernel_options(32, 8) == kernel_options(127, 2) == forced
    for num_queries, heads in ((64, 6), (1, 4), (32, 4), (16, 8), (64, 2), (128, 4), (8192, 4)):
        assert kernel_options(num_queries, heads) is None


@pytest.mark.trains
def test_attention_is_compiled_in_more_versions_than_torch_allows_by_itself():
    """Beyond its limit it would run uncompiled, on the whole matrix, without a word."""
    with torch._dynamo.config.patch(recompile_limit=8):
        compiled_flex_attention.cache_clear()
        compiled_flex_attention()
        assert torch._dynamo.config.recompile_limit == VERSIONS
