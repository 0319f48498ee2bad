// Small things that every part of the page needs.

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const shown = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
const quoted = (text) => `“${shown(text)}”`;
const number = (value, digits = 2) => value.toFixed(digits);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** The colour of a forward, from yellow at the first to magenta at the last. */
const hueOf = (forward, forwards) => `oklch(var(--light) .14 ${85 + (245 * (forward - 1)) / Math.max(1, forwards - 1)})`;
