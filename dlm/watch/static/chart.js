// The order of decoding: every committed token of every model, by when (to the right) and where in the answer (upwards).

const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes, ...children) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
/** Round numbers from 0 up to `most`, about five of them; of a count, whole ones. */
function ticks(most, counts) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1e-9) / 5));
  const step = unit * [1, 2, 5, 10, 20, 50, 100].find((factor) => most / (unit * factor) <= 6 && (!counts || (unit * factor) % 1 === 0));
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

class Chart {
  /** `go(place)` is called with the place on the axis that was clicked. */
  constructor(host, go) {
    Object.assign(this, { host, go });
    new ResizeObserver(() => this.traces && this.show(this.traces, this.axis, this.colour)).observe(host);
    host.addEventListener("click", (event) => {
      const { left, width } = this.svg.getBoundingClientRect();
      const place = ((event.clientX - left) / width * this.width - this.left) / (this.width - this.left - this.right) * this.most;
      this.go(Math.max(0, Math.min(this.most, place)));
    });
  }

  /** Draw all marks of the traces. */
  show(traces, axis, colour) {
    Object.assign(this, { traces, axis, colour });
    this.width = Math.max(260, this.host.clientWidth);
    [this.left, this.right, this.top, this.bottom, this.height] = [34, 12, 12, 34, this.width < 600 ? 230 : 290];
    this.most = Math.max(1e-9, ...traces.map((trace) => endOf(trace, axis)));
    const tall = Math.max(1, ...traces.map(extent));
    this.x = (place) => this.left + place / this.most * (this.width - this.left - this.right);
    this.y = (i) => this.height - this.bottom - (i + 0.5) / tall * (this.height - this.bottom - this.top);
    const room = [(this.width - this.left - this.right) / Math.max(1, ...traces.map((trace) => trace.steps.length)), (this.height - this.top - this.bottom) / tall];
    const size = [Math.max(2, Math.min(14, 0.72 * room[0])), Math.max(2, Math.min(9, room[1] - 0.7))];
    const frame = draw("g", { class: "frame" });
    for (const tick of ticks(this.most, axis === "forwards")) {
      const label = axis === "forwards" ? tick : `${+tick.toPrecision(3)}`;
      frame.append(draw("line", { x1: this.x(tick), x2: this.x(tick), y1: this.top, y2: this.height - this.bottom }),
        draw("text", { x: this.x(tick), y: this.height - this.bottom + 14, "text-anchor": "middle" }, String(label)));
    }
    for (const tick of ticks(tall, true).filter((position) => position > 0)) {
      frame.append(draw("text", { x: this.left - 6, y: this.y(tick - 1) + 3.5, "text-anchor": "end" }, String(tick)));
    }
    frame.append(
      draw("text", { x: this.width - this.right, y: this.height - 6, "text-anchor": "end" }, axis === "forwards" ? "forward" : "seconds"),
      draw("text", { x: 4, y: this.height - 6 }, "↑ token of the answer"));
    const marks = traces.map((trace, index) => this.marks(trace, index, size));
    this.cursor = draw("line", { class: "cursor", y1: this.top - 6, y2: this.height - this.bottom });
    this.svg = draw("svg", { viewBox: `0 0 ${this.width} ${this.height}`, role: "img" }, frame, ...marks.reverse(), this.cursor);
    this.svg.setAttribute("aria-label", traces.map((trace) =>
      `${trace.opening.name}: ${plural(extent(trace), "token")} in ${plural(trace.steps.length, "forward")}`).join("; "));
    this.host.replaceChildren(this.svg);
    this.at(this.place ?? this.most);
  }

  /** The marks of one model: squares, or circles for the second, so that they differ without colour. */
  marks(trace, index, size) {
    const group = draw("g", { class: `marks n${index}` }), begin = begins(trace), tall = extent(trace);
    for (const step of trace.steps) {
      const x = this.x(coordinate(step, this.axis));
      for (const [kind, found] of [["guess", step.guesses], ["committed", step.committed]]) {
        for (const { position, confidence } of rows(found)) {
          const i = position - begin;
          if (i < 0 || i >= tall || (kind === "guess" && index > 0)) continue;
          const tint = this.colour === "forward" && kind === "committed" ? hueOf(step.forward, trace.steps.length) : `var(--c${bin(confidence)})`;
          const mark = index === 0
            ? draw("rect", { x: x - size[0] / 2, y: this.y(i) - size[1] / 2, width: size[0], height: size[1], rx: 1 })
            : draw("circle", { cx: x, cy: this.y(i), r: Math.max(1.6, Math.min(3, size[0] / 3)) });
          mark.setAttribute("class", kind);
          mark.style.setProperty("--c", tint);
          mark.place = coordinate(step, this.axis);
          group.append(mark);
        }
      }
    }
    const last = trace.steps.at(-1);
    if (last) {
      // Beside the last mark, or, where the edge is near, below it: the marks before it are to its left.
      const x = this.x(coordinate(last, this.axis)), y = Math.max(this.top + 3, this.y(tall - 1) + 3.5), near = x > this.width - 130;
      const name = draw("text", { x: near ? x + 4 : x + 12, y: near ? y + 24 : y, "text-anchor": near ? "end" : "start" }, trace.opening.name);
      group.append(name);
    }
    return group;
  }

  /** Move the cursor; what lies behind it is faint. */
  at(place) {
    this.place = place;
    if (!this.svg) return;
    const x = this.x(Math.min(place, this.most));
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    for (const mark of this.svg.querySelectorAll(".guess, .committed")) mark.classList.toggle("later", mark.place > place + 1e-9);
  }
}
