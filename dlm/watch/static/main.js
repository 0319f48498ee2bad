// Begins: the races that are in the page, one of them shown.

const races = JSON.parse($("data").textContent);
const player = new Player();

function choose(index) {
  const race = races[index];
  player.load(race);
  settings(race.settings);
  for (const [i, button] of [...$("races").querySelectorAll("button")].entries()) button.setAttribute("aria-pressed", i === index);
  document.title = `${race.prompt.slice(0, 40) || "dlm"} – denoising`;
}

if (races.length > 1) {
  $("races").hidden = false;
  $("races").append(...races.map((race, i) => {
    const button = make("button", { type: "button", textContent: race.prompt || "(empty)" });
    button.addEventListener("click", () => choose(i));
    return button;
  }));
}
if (races.length) choose(0);
