// The search's sliders. One that nobody has touched sends nothing: the model's own value applies, and
// is shown as it is, even between two steps of the slider.
import { byId } from "./dom.js";

const controls = byId("controls");
const sliders = { beam_size: byId("beams"), length_penalty: byId("length"), diversity_penalty: byId("diversity") };
const touched = new Set(); // names of sliders
let own = { beam_size: 5, length_penalty: 1, beam_groups: 1, diversity_penalty: 0 }; // the model's search
let changed = () => {};

// `whenChanged` is called when the search has changed.
export function watchSliders(whenChanged) {
  changed = whenChanged;
}

// The model's own search, and the bounds of the API.
export function setOwnSearch({ search, limits }) {
  own = search;
  for (const [name, slider] of Object.entries(sliders)) slider.max = limits[name];
  reset();
}

// The query of the API.
export function searchParams() {
  const given = {}, beams = value("beam_size"), diversity = value("diversity_penalty");
  if (touched.has("beam_size")) given.beam_size = beams;
  if (touched.has("beam_size") || touched.has("diversity_penalty")) {
    const fit = own.beam_groups > 1 && beams % own.beam_groups === 0;
    given.beam_groups = diversity === 0 ? 1 : fit ? own.beam_groups : beams;
    given.diversity_penalty = diversity;
  }
  if (touched.has("length_penalty")) given.length_penalty = value("length_penalty");
  return { ...given, alternatives: Math.min(3, beams - 1) };
}

function value(name) {
  if (touched.has(name)) return Number(sliders[name].value);
  return name === "diversity_penalty" && own.beam_groups === 1 ? 0 : own[name];
}

function label() {
  for (const [name, slider] of Object.entries(sliders)) {
    const number = value(name);
    const decimals = name !== "beam_size" && Number.isInteger(number);
    const text = name === "diversity_penalty" && !number ? "off" : decimals ? number.toFixed(1) : String(number);
    controls.querySelector(`output[for="${slider.id}"]`).textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  sliders.diversity_penalty.disabled = value("beam_size") === 1;
}

function reset() {
  touched.clear();
  for (const [name, slider] of Object.entries(sliders)) slider.value = value(name);
  label();
}

controls.addEventListener("input", ({ target }) => {
  touched.add(Object.keys(sliders).find((name) => sliders[name] === target));
  label();
  changed();
});
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("reset", (event) => {
  event.preventDefault();
  reset();
  changed();
});
reset();
