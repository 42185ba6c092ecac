// The caption's words: point at one, focus or tap it, and see where the model looked and how sure it
// was. Arrow keys move between words; a tap stays until the next one.
import { draw } from "./attention.js";
import { byId, element } from "./dom.js";

const [caption, hint, image, overlay] = ["caption", "hint", "image", "overlay"].map(byId);
let answer = null; // what the API said
let words = []; // buttons, one per token
let pointed = null, pinned = null; // of them

export function showWords(found) {
  answer = found;
  pointed = pinned = null;
  words = (found?.tokens ?? []).map(({ token }, i) =>
    element("button", { type: "button", className: "word", textContent: token, tabIndex: i ? -1 : 0 }));
  caption.replaceChildren(...words.flatMap((word) => [word, " "]));
  refresh();
}

function refresh() {
  const focused = words.find((word) => word.matches(":focus-visible"));
  const at = words.indexOf(pointed ?? focused ?? pinned);
  words.forEach((word, i) => word.classList.toggle("on", i === at));
  const token = answer?.tokens[at];
  hint.textContent = token ? `“${token.token}”: ${percent(token.probability)} sure of this word` : invitation();
  const looked = Boolean(token?.attention) && !image.hidden;
  overlay.classList.toggle("on", looked);
  if (looked) draw(overlay, token.attention, answer.image.seen);
}

function invitation() {
  if (!words.length) return "";
  const what = answer.tokens[0].attention ? "where the model looked" : "how sure the model is";
  return `${matchMedia("(hover: none)").matches ? "Tap" : "Point at"} a word to see ${what}.`;
}

function percent(probability) {
  return probability > 0.995 ? "over 99 %" : probability < 0.005 ? "under 1 %" : `${Math.round(100 * probability)} %`;
}

const wordAt = ({ target }) => (words.includes(target) ? target : null);

caption.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "touch") pointed = wordAt(event);
  refresh();
});
caption.addEventListener("pointerleave", () => {
  pointed = null;
  refresh();
});
caption.addEventListener("focusin", refresh);
caption.addEventListener("focusout", () => setTimeout(refresh));
caption.addEventListener("click", (event) => {
  const word = wordAt(event);
  pinned = pinned === word ? null : word;
  refresh();
});
caption.addEventListener("keydown", (event) => {
  const at = words.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: words.length - 1 }[event.key];
  if (at < 0 || !words[to]) return;
  event.preventDefault();
  words.forEach((word, i) => { word.tabIndex = i === to ? 0 : -1; });
  words[to].focus();
});
new ResizeObserver(refresh).observe(image);
