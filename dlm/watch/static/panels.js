// What stands around the lanes: the score of a finished race, the legend, and what became of the chosen token.

const entry = (name, ...value) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, ...value));
const small = (text) => make("small", { textContent: text });

/** The result in numbers: what the dLM took against its rival. */
function score({ traces }, differs) {
  const host = $("score");
  host.hidden = !traces.every((trace) => trace.closing);
  if (host.hidden) return;
  const [dlm, parent] = traces.map((trace) => trace.closing);
  const times = (one, other) => (one && other ? ` ${number(one / other, 1)}×` : "");
  const beside = (text) => (parent ? small(` against ${text}`) : "");
  const tiles = [
    entry("Forwards (NFE)", `${dlm.nfe}`, beside(parent?.nfe)),
    entry("Tokens per forward (TPF)", number(dlm.tpf), beside(parent && number(parent.tpf))),
    entry("Tokens per second", dlm.tokens_per_second.toFixed(0),
      beside(parent && `${parent.tokens_per_second.toFixed(0)},${times(dlm.tokens_per_second, parent.tokens_per_second)}`)),
  ];
  if (parent) tiles.push(entry("Same answer", differs < 0 ? "yes" : "no",
    small(differs < 0 ? `, all ${plural(dlm.tokens, "token")}` : `, from token ${differs + 1} on (≠)`)));
  host.replaceChildren(...tiles);
}

/** A picture of the prompt under its name; a small one is enlarged pixel by pixel. */
function picture({ name, source, width, height }) {
  const className = Math.max(width, height) < 160 ? "small" : "";
  return make("figure", {}, make("img", { src: source, alt: `Picture ${name}`, width, height, className }), make("figcaption", { textContent: name }));
}

/** What the colours mean. */
function legend(colour, forwards) {
  const swatches = colour === "confidence"
    ? BIN_NAMES.map((name, i) => [name, `var(--c${i})`])
    : [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(1 + share * (forwards - 1))))].map((n) => [`${n}`, hueOf(n, forwards)]);
  $("legend").replaceChildren(...swatches.map(([name, tint]) => {
    const swatch = make("i");
    swatch.style.setProperty("--c", tint);
    return make("span", {}, swatch, name);
  }));
}

/** The history of the chosen token in every model, up to the place that is shown. */
function inspect(race, lanes, axis, place, chosen) {
  const host = $("token");
  if (!chosen) {
    host.replaceChildren(make("p", { className: "hint", textContent: "Choose a token to see what every forward made of it." }));
    return;
  }
  const lines = lanes.map((lane) => {
    const cell = replay(lane.trace, countAt(lane.trace, axis, place))[chosen.cell];
    const line = make("div", { className: "history" }, make("h3", {}, make("i", { className: `mark n${lane.index}` }), lane.name));
    const events = (cell?.history ?? []).map(({ kind, forward, text, confidence }) => {
      const said = text === undefined ? "masked again" : quoted(text);
      const event = make("li", { className: kind }, small(`forward ${forward}`), make("b", { textContent: said }),
        small(confidence === undefined ? "" : number(confidence, 3)), small(kind === "committed" ? "committed" : kind === "guess" ? "guess" : ""));
      event.style.setProperty("--c", confidence === undefined ? "transparent" : `var(--c${bin(confidence)})`);
      return event;
    });
    const nothing = cell ? "not reached yet" : "the answer has no such token";
    line.append(events.length ? make("ol", {}, ...events) : make("p", { textContent: nothing }));
    return line;
  });
  host.replaceChildren(make("h2", { textContent: `Token ${chosen.cell + 1}` }), ...lines);
}

/** The settings of decoding, by name; the main ones in the header, too. */
function settings(values) {
  const main = [["run", "run"], ["attention", "attention"], ["block_size", "blocks of"], ["decoding", "decoding"], ["threshold", "threshold"], ["tokens_per_step", "tokens per step"]];
  $("about").textContent = main.filter(([name]) => values[name] != null).map(([name, said]) => `${said} ${values[name]}`).join(" · ");
  const shownAs = (value) => (Array.isArray(value) ? value.map((text) => JSON.stringify(text)).join(", ") || "none" : String(value ?? "none"));
  $("settings").querySelector("dl").replaceChildren(...Object.entries(values).map(([name, value]) => entry(name, shownAs(value))));
}
