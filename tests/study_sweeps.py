"""Sweeps that refer to one another, and runs of their points, for tests of the study."""

from dlm.runs.run import Run

ONE = """
title: one
shared: [attention=block, token_shift=false, logger=csv]
points:
  a: {label: A, overrides: [loss=nelbo]}
  b: {label: B, overrides: [loss=mean]}
grid: {block_size: [2, 4]}
evaluations:
  order: {points: ["a, block_size=2"], overrides: [measurement=trace, decoding.threshold=1]}
  speed:
    overrides: [measurement=decode]
    grid: {decoding.threshold: [0.5, 0.9]}
"""
TWO = """
title: two
points:
  plain: {label: plain, overrides: [attention=block, token_shift=false, logger=csv, loss=nelbo, block_size=2]}
  learned: {label: learned, overrides: [masking=learned, "masking.trace=@one:a, block_size=2/order"]}
  child: {label: child, overrides: [model=run, "model.run=@parents:old", times=0.5]}
"""
PARENTS = "title: parents\nseeds: [7]\npoints: {old: {label: old, overrides: [pretrain=embedded]}}"
LINKED = {"one": ONE, "two": TWO, "parents": PARENTS}


def finish(runs_dir, point) -> Run:
    """A finished run, as far as a study looks."""
    run = Run(runs_dir / point.run)
    run.folder.mkdir(parents=True)
    run.update(status="finished", evaluation={"settings": point.evaluated_with}, tokens=10, train_seconds=2.0)
    return run


def by_name(sweep):
    return {point.name: point for point in sweep.points}
