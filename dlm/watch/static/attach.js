// Pictures that go with the next prompt: chosen, pasted or dropped. They are in the page, as data URIs.

const KINDS = { "image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WebP", "image/gif": "GIF" };  // the server's
let attached = [];  // as `picture` shows them; a race keeps the array
let attaching = Promise.resolve();  // files that are being read

const megabytes = (bytes) => `${number(bytes / 1e6, bytes < 1e6 ? 2 : 1)} MB`;

/** Attach files after those that are being read; what cannot go with the prompt is said. */
function attach(files) {
  attaching = attaching.then(async () => {
    const said = [];
    for (const file of files) await attachOne(file).catch((error) => said.push(error.message));
    trouble(said.join(" "));
    thumbnails();
  });
}

async function attachOne(file) {
  await meet();
  const { limits, modes } = info;
  if (!modes.diffusion.pictures) throw new Error("This model reads text only: it takes no pictures.");
  if (!(file.type in KINDS)) throw new Error(`${file.name} is no picture of the formats ${Object.values(KINDS).join(", ")}.`);
  if (attached.length >= limits.pictures) throw new Error(`${file.name} is too many: this server takes ${plural(limits.pictures, "picture")} with a prompt.`);
  const rest = limits.body - new Blob([JSON.stringify(asked())]).size;
  if ((4 / 3) * file.size + 200 > rest) {  // base64, and what stands around it
    throw new Error(`${file.name} is too large: it has ${megabytes(file.size)}, and this server has room for ${megabytes(Math.max(0, 0.75 * rest))} beside what the prompt has already. Make it smaller, or serve with a larger limits.body.`);
  }
  const made = await pictureOf(file);
  if (made.width * made.height > limits.pixels) {
    throw new Error(`${file.name} is too large: it has ${made.width} x ${made.height} pixels, and this server takes ${limits.pixels} in all.`);
  }
  attached = [...attached, made];
}

/** A file as a picture. Rejects what the browser cannot read. */
async function pictureOf(file) {
  const damaged = () => { throw new Error(`${file.name} cannot be read: is it a whole picture?`); };
  const source = await new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
    reader.readAsDataURL(file);
  }).catch(damaged);
  const image = make("img", { src: source });
  await image.decode().catch(damaged);
  return { name: file.name, source, width: image.naturalWidth, height: image.naturalHeight };
}

/** The attached pictures, each with a button that takes it back. */
function thumbnails() {
  $("said").textContent = `${plural(attached.length, "picture")} with the prompt`;
  $("attached").replaceChildren(...attached.map((one) => {
    const back = make("button", { type: "button", textContent: "×", title: `Take back ${one.name}` });
    back.setAttribute("aria-label", back.title);
    back.addEventListener("click", () => {
      attached = attached.filter((other) => other !== one);
      thumbnails();
      $("attach").focus();
    });
    const figure = picture(one);
    figure.append(back);
    return figure;
  }));
}

/** Listen to what is chosen, pasted and dropped. Text that is pasted or dropped stays text. */
function listen() {
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => { attach([...$("files").files]); $("files").value = ""; });
  addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    if (!files.length || types.includes("text/plain")) return;
    event.preventDefault();
    attach([...files]);
  });
  const drags = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => { if (drags(event)) { event.preventDefault(); ask.classList.add("dropping"); } });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) ask.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    if (!drags(event)) return;
    event.preventDefault();
    ask.classList.remove("dropping");
    attach([...event.dataTransfer.files]);
  });
}
