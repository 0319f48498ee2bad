// One model's answer as cells: a token, a bar as long as its confidence, and the forward that committed it.

class Lane {
  /** `choose(lane, i)` is called with the cell that was chosen. */
  constructor(trace, index, choose) {
    Object.assign(this, { trace, index, choose, cells: [], keys: [], differs: -1, focus: 0 });
    this.name = trace.opening.name;
    this.final = trace.closing ? replay(trace, trace.steps.length) : [];
    this.rate = make("p", { className: "rate" });
    this.bar = make("i");
    this.badge = make("span", { className: "badge" });
    this.grid = make("div", { className: "cells" });
    this.grid.setAttribute("role", "group");
    this.grid.setAttribute("aria-label", `${this.name}: tokens of the answer`);
    this.grid.addEventListener("keydown", (event) => this.move(event));
    const title = make("h2", {}, make("i", { className: `mark n${index}` }), this.name);
    this.element = make("section", { className: "lane" },
      make("header", {}, title, this.badge, this.rate), make("div", { className: "progress" }, this.bar), this.grid);
    this.element.setAttribute("aria-label", this.name);
  }

  /** Draw the answer after `count` forwards. */
  draw(count, { colour, guesses, fresh, chosen }) {
    const state = replay(this.trace, count);
    const committed = state.filter((cell) => cell.state === "committed").length;
    const block = this.trace.steps[count - 1]?.block ?? [0, 0];
    const done = Boolean(this.trace.closing) && count === this.trace.steps.length;
    state.forEach((cell, i) => {
      const position = begins(this.trace) + i;
      const look = {
        cell, i, fresh: fresh && cell.state === "committed" && cell.forward === count,
        now: !done && position >= block[0] && position < block[1], chosen: chosen === i, colour, guesses,
        differs: i === this.differs && cell.state === "committed",
      };
      this.paint(look);
    });
    this.cells.splice(state.length).forEach((cell) => cell.remove());
    while (this.grid.lastElementChild?.matches("hr")) this.grid.lastElementChild.remove();
    this.keys.length = Math.min(this.keys.length, state.length);
    this.element.classList.toggle("done", done);
    this.badge.textContent = done ? "done" : this.trace.closing ? "" : this.trace.stopped ? "stopped" : "decoding …";
    const rate = count ? `, ${number(committed / count)} per forward` : "";
    this.rate.textContent = `${plural(committed, "token")} in ${plural(count, "forward")}${rate}`;
    this.bar.style.width = `${(100 * committed) / Math.max(1, this.trace.closing ? state.length : this.trace.most)}%`;
    return state;
  }

  paint({ cell, i, fresh, now, chosen, colour, guesses, differs }) {
    const guess = guesses && cell.state === "masked" ? cell.guess : null;
    const said = cell.state === "committed" ? cell : guess;
    const tint = said && (colour === "forward" && cell.state === "committed"
      ? hueOf(cell.forward, this.trace.steps.length) : `var(--c${bin(said.confidence)})`);
    const key = [cell.state, said?.text, said?.confidence, cell.forward, fresh, now, chosen, tint, differs].join("\u0000");
    const button = this.cells[i] ?? this.add(i);
    if (this.keys[i] === key) return;
    this.keys[i] = key;
    const flags = { fresh, now, chosen, differs, guessed: guess };
    button.className = ["cell", cell.state, ...Object.keys(flags).filter((name) => flags[name])].join(" ");
    button.style.setProperty("--c", tint || "transparent");
    button.style.setProperty("--sure", said ? `${Math.round(100 * said.confidence)}%` : "0%");
    const [text, , forward] = button.children;
    text.textContent = said ? shown(said.text) : cell.state === "masked" ? "" : "·";
    forward.textContent = cell.state === "committed" ? cell.forward : "";
    button.setAttribute("aria-label", this.label(cell, i));
    button.title = this.label(cell, i);
    button.setAttribute("aria-pressed", chosen);
  }

  label(cell, i) {
    const where = `Token ${i + 1}`;
    if (cell.state === "closed") return `${where}: its block is not reached`;
    if (cell.state === "masked") return `${where}: masked${cell.guess ? `, guess ${quoted(cell.guess.text)} at ${number(cell.guess.confidence)}` : ""}`;
    return `${where}: ${quoted(cell.text)}, committed by forward ${cell.forward}, confidence ${number(cell.confidence, 3)}${i === this.differs ? ", the first that differs" : ""}`;
  }

  /** A cell as wide as its token will be, so that nothing moves while the answer is played. */
  add(i) {
    const button = make("button", { type: "button", tabIndex: i === this.focus ? 0 : -1 },
      make("b"), make("i"), make("small"));
    const last = this.final[i], { block_size, to_grid } = this.trace.opening;
    if (last?.text) {
      const width = Math.max([...shown(last.text)].length, 0.72 * String(last.forward).length, 1);
      button.style.width = `calc(${width}ch + .5rem)`;
    }
    if (this.final[i - 1]?.text?.includes("\n")) this.grid.append(make("hr", { className: "line" }));
    else if (block_size > 1 && i > 0 && (begins(this.trace) + to_grid + i) % block_size === 0) this.grid.append(make("hr"));
    button.addEventListener("click", () => { this.roam(i); this.choose(this, i); });
    this.grid.append(button);
    this.cells[i] = button;
    return button;
  }

  /** Arrow keys go from token to token. */
  move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    const to = { Home: 0, End: this.cells.length - 1 }[event.key] ?? Math.min(this.cells.length - 1, Math.max(0, this.focus + by));
    if (by === undefined && !["Home", "End"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    this.roam(to);
    this.cells[to].focus();
    this.choose(this, to);
  }

  roam(i) {
    this.cells[this.focus]?.setAttribute("tabindex", "-1");
    this.focus = i;
    this.cells[i].setAttribute("tabindex", "0");
  }
}
