"use strict";
// Replays a trace: what stands at every position of the answer after some of its forwards. The records are those of
// dlm/watch/trace.py.

const BINS = [0.5, 0.7, 0.9, 0.99];
const BIN_NAMES = ["below .5", ".5–.7", ".7–.9", ".9–.99", ".99 and more"];
const bin = (confidence) => BINS.filter((limit) => confidence >= limit).length;

/** The rows of a record's four lists. */
const rows = ({ positions, tokens, texts, confidences }) =>
  positions.map((position, i) => ({ position, token: tokens[i], text: texts[i], confidence: confidences[i] }));

/** The first position of the answer. */
const begins = (trace) => trace.opening.prompt_tokens.length;

/** How many positions of the answer there are to show: all of them, or while it is made those up to the block's end. */
const extent = (trace) =>
  trace.closing ? trace.closing.tokens : Math.max(0, ...trace.steps.map((step) => step.block[1] - begins(trace)));

/** The cells of the answer after the first `count` forwards. A cell's state is "closed" before its block is denoised,
 * then "masked", then "committed"; its history has what each forward made of it. */
function replay(trace, count) {
  const begin = begins(trace);
  const cells = Array.from({ length: extent(trace) }, () => ({ state: "closed", history: [] }));
  let open = 0;  // the cells before this one have been in a block
  for (const step of trace.steps.slice(0, count)) {
    const { forward } = step;
    for (; open < Math.min(cells.length, step.block[1] - begin); open++) cells[open].state = "masked";
    for (const position of step.remasked) {
      const cell = cells[position - begin];
      if (!cell) continue;
      cell.state = "masked";
      cell.history.push({ kind: "remasked", forward });
    }
    for (const { position, ...said } of rows(step.guesses)) {
      const cell = cells[position - begin];
      if (!cell) continue;
      cell.history.push({ kind: "guess", forward, ...said });
      if (cell.state === "committed") cell.confidence = said.confidence;  // it was scored again, and stays
      else cell.guess = { forward, ...said };
    }
    for (const { position, ...said } of rows(step.committed)) {
      const cell = cells[position - begin];
      if (!cell) continue;
      cell.history.push({ kind: "committed", forward, ...said });
      Object.assign(cell, { state: "committed", forward, ...said });
    }
  }
  // While the answer is made, its end may be there although nobody has cut what is behind it.
  const end = trace.closing ? -1 : cells.findIndex((cell) => cell.state === "committed" && trace.opening.ends.includes(cell.token));
  return end < 0 ? cells : cells.slice(0, end + 1);
}

/** What the axis of the race counts: a step's number, or its time. */
const coordinate = (step, axis) => (axis === "forwards" ? step.forward : step.seconds);

/** How many forwards of a trace lie at or before a place on the axis. */
const countAt = (trace, axis, place) => trace.steps.filter((step) => coordinate(step, axis) <= place + 1e-9).length;

/** The end of a trace on the axis. */
const endOf = (trace, axis) => (trace.steps.length ? coordinate(trace.steps.at(-1), axis) : 0);

/** Where two finished answers first have different tokens; -1 where they have the same, as far as both go. */
function firstDifference(one, other) {
  const [a, b] = [one, other].map((trace) => replay(trace, trace.steps.length));
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i].token !== b[i].token) return i;
  return a.length === b.length ? -1 : shared;
}
