// Begins: the races that are in the page, or the form of the server.

const races = JSON.parse($("data").textContent);
const player = new Player();

/** Show a race; `follows` keeps to its end while it is made. */
function choose(index, follows = false) {
  const race = races[index];
  player.load(race, follows);
  settings(race.settings);
  for (const [i, button] of [...$("races").querySelectorAll("button")].entries()) button.setAttribute("aria-pressed", i === index);
  document.title = `${race.prompt.slice(0, 40) || "dlm"} – denoising`;
}

/** The prompts to choose from. */
function list() {
  $("races").hidden = races.length < 2;
  $("races").replaceChildren(...races.map((race, i) => {
    const button = make("button", { type: "button", textContent: race.prompt || "(empty)" });
    button.addEventListener("click", () => choose(i));
    return button;
  }));
}

list();
if (races.length) choose(0);
else if (location.protocol.startsWith("http")) live();
