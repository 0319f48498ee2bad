// The server's page: a prompt goes to /dlm/trace once for each model of the race, whose events are drawn as they come.

const NAMES = { diffusion: "dLM", parent: "parent (AR)", ar: "its weights as AR", speculate: "dLM drafts, AR verifies" };
const ask = $("ask"), field = (name) => ask.elements[name];
let running = null;  // stops the race that is being decoded

const headers = () => (field("key").value ? { Authorization: `Bearer ${field("key").value}` } : {});

/** Say what went wrong, or, without a text, nothing. */
function trouble(text = "") {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

/** A response of the server; an Error with what it says if it refuses. */
async function answered(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  if (response.ok) return response;
  if (response.status === 401) {
    $("key").hidden = false;
    $("decoder").open = true;
    field("key").focus();
  }
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `the server answers ${response.status}`);
}

/** Server-sent events of a response, one after another: [name, data]. */
async function* events(response) {
  let text = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    text += part;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      if (lines.data !== "[DONE]") yield [lines.event, JSON.parse(lines.data)];
    }
  }
}

/** What the server says of itself, once; the form follows it. */
let info = null;
async function meet() {
  if (info) return;
  info = await (await answered("/dlm/info")).json();
  const { diffusion, ...rivals } = info.modes;
  const order = ["parent", "ar", "speculate"].filter((mode) => mode in rivals);
  field("rival").replaceChildren(...[...order, ""].map((mode) => make("option", { value: mode, textContent: NAMES[mode] ?? "nobody" })));
  field("threshold").value = diffusion.threshold ?? "";
  field("threshold").parentElement.hidden = !("threshold" in diffusion);
  field("temperature").value = diffusion.temperature ?? 0;
  field("max_tokens").value = info.limits.default_tokens;
  field("max_tokens").max = info.limits.new_tokens;
  $("attach").hidden = $("ways").hidden = !diffusion.pictures;
  settings({ run: info.model, decoding: diffusion.decoder.toLowerCase(), block_size: diffusion.block_size });
}

/** What is asked, as /dlm/trace takes it: the text, or with pictures a chat; numbers that are left empty are the server's. */
function asked() {
  const text = $("text").value, parts = attached.map(({ source }) => ({ type: "image_url", image_url: { url: source } }));
  const said = parts.length ? { messages: [{ role: "user", content: [...parts, { type: "text", text }] }] } : { prompt: text };
  const body = { ...said, max_tokens: Number(field("max_tokens").value), seed: Number(field("seed").value) };
  if (field("temperature").value !== "") body.temperature = Number(field("temperature").value);
  if (field("stop").value) body.stop = [field("stop").value];
  return body;
}

/** Decode with one mode into its trace. */
async function decode(trace, mode, body, signal, changed) {
  const threshold = mode === "diffusion" && field("threshold").value !== "" ? { threshold: Number(field("threshold").value) } : {};
  const response = await answered("/dlm/trace", {
    method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, ...threshold, mode }),
  });
  for await (const [name, told] of events(response)) {
    if (name === "opening") Object.assign(trace.opening, told, { name: NAMES[mode] ?? mode });
    else if (name === "step") trace.steps.push(told);
    else if (name === "closing") trace.closing = told;
    else throw new Error(told.error?.message ?? "the server broke off");
    changed();
  }
  if (!trace.closing) throw new Error("the server broke off");
}

/** A race about what is in the form that is to be decoded: its traces are empty. */
function begun(body, modes) {
  const { block_size, decoder } = info.modes.diffusion;
  const { prompt, messages, max_tokens, ...others } = body;
  const values = { run: info.model, decoding: decoder.toLowerCase(), block_size, threshold: field("threshold").value || null, max_new_tokens: max_tokens, ...others };
  const empty = (mode) => ({ opening: { name: NAMES[mode] ?? mode, prompt_tokens: [], prompt_texts: [], block_size: 1, to_grid: 0, ends: [] }, steps: [], closing: null, most: max_tokens });
  return { prompt: $("text").value, settings: values, traces: modes.map(empty), pictures: attached };
}

async function denoise() {
  let race = null;
  running?.abort();
  const stopper = running = new AbortController();
  trouble();
  try {
    await meet();
    await attaching;
    const body = asked(), modes = ["diffusion", field("rival").value].filter(Boolean);
    race = begun(body, modes);
    races.push(race);
    list();
    choose(races.length - 1, true);
    busy(true);
    let drawn = false;
    const changed = () => {
      if (drawn || player.race !== race) return;
      drawn = true;
      requestAnimationFrame(() => { drawn = false; if (player.race === race) player.refresh(); });
    };
    await Promise.all(race.traces.map((trace, i) => decode(trace, modes[i], body, stopper.signal, changed)));
    if (player.race === race) player.settle();
  } catch (error) {
    if (error.name !== "AbortError") { trouble(error.message); stopper.abort(); }
  } finally {
    race?.traces.forEach((trace) => { trace.stopped = !trace.closing; });
    if (race && player.race === race) player.refresh();
    if (running === stopper) { running = null; busy(false); }
  }
}

function busy(is) {
  $("stop").hidden = !is;
  $("save").hidden = is || !races.some((race) => race.traces.every((trace) => trace.closing));
}

/** The finished races as a page that needs no server. */
async function save() {
  const finished = races.filter((race) => race.traces.every((trace) => trace.closing));
  const data = JSON.stringify(finished).replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const blank = await (await fetch("/")).text();
  const page = blank.replace('id="data">[]<', () => `id="data">${data}<`);
  const link = make("a", { href: URL.createObjectURL(new Blob([page], { type: "text/html" })), download: "denoising.html" });
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Show the form, and get to know the server. */
function live() {
  ask.hidden = $("intro").hidden = false;
  listen();
  ask.addEventListener("submit", (event) => { event.preventDefault(); denoise(); });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask.requestSubmit(); }
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("save").addEventListener("click", () => save().catch((error) => trouble(error.message)));
  meet().catch((error) => trouble(error.message));
}
