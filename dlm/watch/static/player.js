// Plays the traces of one prompt: what place of the race is shown, and how it goes on.

const SPEEDS = {
  forwards: [["2", "2 a second"], ["5", "5 a second"], ["12", "12 a second"], ["30", "30 a second"]],
  seconds: [["0.1", "a tenth"], ["0.25", "a quarter"], ["1", "real time"], ["2", "double"]],
};
const PACE = { forwards: "5", seconds: "0.25" };

class Player {
  constructor() {
    Object.assign(this, { race: null, lanes: [], place: 0, fresh: false, playing: false, chosen: null, follows: false });
    this.chart = new Chart($("order").querySelector("div"), (place) => this.go(this.snapped(place), true));
    $("play").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    $("first").addEventListener("click", () => this.go(0, true));
    $("last").addEventListener("click", () => this.go(this.most(), true));
    $("back").addEventListener("click", () => this.step(-1));
    $("on").addEventListener("click", () => this.step(1));
    $("slider").addEventListener("input", () => this.go(Number($("slider").value), false));
    $("slider").addEventListener("change", () => this.say());
    $("axis").addEventListener("change", () => this.turn());
    for (const input of document.querySelectorAll("#view input")) input.addEventListener("change", () => this.show());
    addEventListener("keydown", (event) => this.key(event));
    this.pace();
  }

  get axis() { return $("axis").value; }
  get colour() { return document.querySelector("#view input[name=colour]:checked").value; }

  most() { return Math.max(0, ...this.race.traces.map((trace) => endOf(trace, this.axis))); }

  /** Show a race, finished or in the making; `follows` keeps the place at its end. */
  load(race, follows = false) {
    this.pause();
    Object.assign(this, { race, follows, chosen: null });
    $("prompt").querySelector("p").textContent = race.prompt || "(empty)";
    $("pictures").replaceChildren(...(race.pictures ?? []).map(picture));
    $("prompt").hidden = !$("ask").hidden && !race.pictures?.length && $("text").value === race.prompt;
    $("intro").hidden = true;
    $("race").hidden = $("transport").hidden = false;
    this.lay();
    this.refresh();
    this.go(this.most(), false);
  }

  /** Lay out the lanes of the race. */
  lay() {
    this.lanes = this.race.traces.map((trace, i) => new Lane(trace, i, (lane, cell) => this.select(lane, cell)));
    $("lanes").replaceChildren(...this.lanes.map((lane) => lane.element));
  }

  /** The race is over: what is shown stays, and every cell gets the width of its token. */
  settle() {
    const { follows, place } = this;
    this.lay();
    this.refresh();
    this.go(follows ? this.most() : place, true);
  }

  /** The race has more forwards than before, or has ended. */
  refresh() {
    const { traces } = this.race, finished = traces.every((trace) => trace.closing);
    const differs = finished && traces.length > 1 ? firstDifference(traces[0], traces[1]) : -1;
    this.lanes.forEach((lane) => { lane.differs = differs; });
    $("slider").max = this.most();
    $("slider").step = this.axis === "forwards" ? 1 : "any";
    $("ends").replaceChildren(...traces.map((trace, i) => {
      const end = make("i", { className: `n${i}`, title: `${trace.opening.name} ends` });
      end.style.left = `${(100 * endOf(trace, this.axis)) / Math.max(1e-9, this.most())}%`;
      return end;
    }));
    this.chart.show(traces, this.axis, this.colour);
    score(this.race, differs);
    if (this.follows) this.go(this.most(), false, true);
    else this.show();
  }

  go(place, says, follows = false) {
    if (!follows) this.follows = this.follows && place >= this.most();
    this.fresh = place > 0;
    this.place = Math.min(place, this.most());
    this.show();
    if (says) this.say();
  }

  /** The nearest forward to a place on the axis. */
  snapped(place) {
    const stops = [0, ...this.race.traces.flatMap((trace) => trace.steps.map((step) => coordinate(step, this.axis)))];
    return stops.reduce((best, stop) => (Math.abs(stop - place) < Math.abs(best - place) ? stop : best));
  }

  /** Go one forward, of any model, back or on. */
  step(by) {
    this.pause();
    const stops = [0, ...this.race.traces.flatMap((trace) => trace.steps.map((step) => coordinate(step, this.axis)))].sort((a, b) => a - b);
    const next = by > 0 ? stops.find((stop) => stop > this.place + 1e-9) : stops.findLast((stop) => stop < this.place - 1e-9);
    this.go(next ?? (by > 0 ? this.most() : 0), true);
  }

  show() {
    const options = { colour: this.colour, guesses: $("guesses").checked, fresh: this.fresh };
    const standing = this.lanes.map((lane) => {
      const cells = lane.draw(countAt(lane.trace, this.axis, this.place), { ...options, chosen: this.chosen?.cell ?? -1 });
      return `${lane.name} ${cells.filter((cell) => cell.state === "committed").length}`;
    });
    $("standing").textContent = `tokens: ${standing.join(", ")}`;
    if (this.chart.colour !== this.colour) this.chart.show(this.race.traces, this.axis, this.colour);
    this.chart.at(this.place);
    $("slider").value = this.place;
    const place = this.axis === "forwards" ? `forward ${this.place} of ${this.most()}` : `${number(this.place, 3)} of ${number(this.most(), 3)} s`;
    $("slider").setAttribute("aria-valuetext", place);
    document.querySelector("#track label").textContent = place;
    legend(this.colour, this.race.traces[0].steps.length);
    inspect(this.race, this.lanes, this.axis, this.place, this.chosen);
  }

  /** Tell a screen reader where the race stands; while it plays this would be too much. */
  say() {
    const parts = this.lanes.map((lane) => {
      const count = countAt(lane.trace, this.axis, this.place);
      const committed = replay(lane.trace, count).filter((cell) => cell.state === "committed").length;
      return `${lane.name} ${committed} of ${plural(extent(lane.trace), "token")}`;
    });
    $("said").textContent = `${$("slider").getAttribute("aria-valuetext")}: ${parts.join(", ")}`;
  }

  /** Choose a token, or, once more, none. */
  select(lane, cell) {
    const again = this.chosen?.lane === lane.index && this.chosen.cell === cell;
    this.chosen = again ? null : { lane: lane.index, cell };
    this.show();
  }

  play() {
    if (this.place >= this.most() - 1e-9) this.go(0, false);
    this.playing = true;
    this.buttons();
    let last = performance.now(), place = this.place;
    const frame = (now) => {
      if (!this.playing) return;
      place += (now - last) / 1000 * Number($("speed").value);
      last = now;
      const to = this.axis === "forwards" ? Math.floor(place) : place;
      if (to !== this.place) this.go(to, false);
      if (this.place >= this.most()) { this.pause(); this.say(); }
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  pause() { this.playing = false; this.buttons(); }

  buttons() {
    $("play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
    $("play").classList.toggle("playing", this.playing);
  }

  /** Race by the other axis, at the same place of the first model. */
  turn() {
    const { traces } = this.race, old = this.axis === "forwards" ? "seconds" : "forwards";
    const counts = traces.map((trace) => countAt(trace, old, this.place));
    this.pace();
    this.refresh();
    const steps = traces.flatMap((trace, i) => trace.steps.slice(0, counts[i]).slice(-1));
    this.go(this.place >= 0 && steps.length ? Math.max(...steps.map((step) => coordinate(step, this.axis))) : 0, true);
  }

  pace() {
    const chosen = PACE[this.axis];
    $("speed").replaceChildren(...SPEEDS[this.axis].map(([value, text]) => make("option", { value, textContent: text, selected: value === chosen })));
  }

  key(event) {
    if (!this.race || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, button, summary, a")) return;
    const does = {
      " ": () => (this.playing ? this.pause() : this.play()), ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      Home: () => this.go(0, true), End: () => this.go(this.most(), true),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  }
}
