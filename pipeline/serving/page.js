// The page: photos in, captions out.
import { renderCard } from "./card.js";
import { byId, element } from "./dom.js";
import { searchParams, setOwnSearch, watchSliders } from "./sliders.js";
import { showWords } from "./words.js";

const PATIENCE = 180; // ms that a slider rests before the photo is captioned again
const TRIES = 4; // if the server is busy
const [stage, start, image, result] = ["stage", "start", "image", "result"].map(byId);
const [problem, said, noPreview] = ["problem", "said", "no-preview"].map(byId);
let model = null; // what /api/model says
let photo = null; // the Blob that is shown
let latest = null; // the AbortController of the last request
let answer = null; // the last answer

// Photos: from a file, the camera, the clipboard, an example, or dropped anywhere.

function take(blob) {
  const { max_bytes, types } = model?.limits ?? {};
  if (!blob) return fail("There is no photo in that. Choose a JPEG, PNG or WebP file.");
  if (types && blob.type && !types.includes(blob.type)) return fail("That is not a photo. Choose a JPEG, PNG or WebP file.");
  if (blob.size > max_bytes) return fail(`The photo has ${Math.ceil(blob.size / 1e6)} MB. Choose one below ${Math.floor(max_bytes / 1e6)} MB.`);
  photo = blob;
  if (image.src) URL.revokeObjectURL(image.src);
  answer = null;
  clear();
  image.hidden = false;
  noPreview.hidden = true;
  image.src = URL.createObjectURL(blob);
  setShown(true);
  result.focus({ preventScroll: true });
  stage.scrollIntoView({ block: "nearest" });
  describe();
}

function setShown(shown) {
  stage.hidden = !shown;
  start.hidden = shown;
  document.body.classList.toggle("shown", shown);
  byId("examples-title").textContent = shown ? "Try another" : "Or try one of these";
}

image.addEventListener("error", () => {
  image.hidden = true;
  noPreview.hidden = !answer; // until then nobody knows whether the model can read it
});
for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files[0]);
    target.value = "";
  });
}
for (const button of document.querySelectorAll("[data-open]")) {
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    byId(button.dataset.open).click();
  });
}
byId("zone").addEventListener("click", () => byId("file").click());
for (const button of document.querySelectorAll("[data-paste]")) {
  button.hidden = !navigator.clipboard?.read;
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    try {
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((one) => one.startsWith("image/"));
        if (type) return take(await item.getType(type));
      }
      fail("The clipboard holds no photo. Copy one first.");
    } catch {
      fail("The browser did not let this page read the clipboard. Use Ctrl + V.");
    }
  });
}
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));
const drop = byId("drop");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.hidden = false;
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.hidden = true;
  take(event.dataTransfer.files[0]);
});

// Captions.

async function describe() {
  latest?.abort();
  const mine = (latest = new AbortController());
  result.setAttribute("aria-busy", "true");
  result.classList.toggle("again", answer !== null);
  problem.hidden = true;
  try {
    const found = await ask(mine.signal);
    if (mine === latest) show(found);
  } catch (error) {
    if (mine !== latest || error.name === "AbortError") return;
    fail(error.message);
    if (!answer) { // there is nothing to show: choose another photo
      setShown(false);
      start.querySelector("button").focus();
    }
  } finally {
    if (mine === latest) result.setAttribute("aria-busy", "false");
  }
}

async function ask(signal) {
  for (let tries = 1; ; tries++) {
    let response;
    try {
      const headers = { "Content-Type": photo.type || "application/octet-stream" };
      const query = new URLSearchParams({ ...searchParams(), attention: Boolean(model?.attention) });
      response = await fetch("api/caption?" + query, { method: "POST", headers, body: photo, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is it still running?");
    }
    const content = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    if (response.ok) return content;
    if (response.status !== 503 || tries === TRIES) throw new Error(sentence(content.error));
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
    signal.throwIfAborted();
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}

function fail(message) {
  problem.textContent = message;
  problem.hidden = false;
}

function clear() {
  showWords(null);
  for (const id of ["confidence", "others"]) byId(id).hidden = true;
}

function show(found) {
  answer = found;
  noPreview.hidden = !image.hidden;
  showWords(found);
  const others = found.alternatives.map((other) => {
    const item = element("li", {}, element("p", { textContent: other.caption }));
    if (other.confidence !== null) item.append(element("span", { textContent: other.confidence.toFixed(2), title: "Confidence" }));
    return item;
  });
  byId("others").hidden = !others.length;
  byId("alternatives").replaceChildren(...others);
  showConfidence(found.confidence);
  said.textContent = `Caption: ${found.caption}.`;
}

function showConfidence(value) {
  byId("confidence").hidden = value === null;
  if (value === null) return;
  const tenths = Math.round(10 * value);
  const often = tenths < 1 ? "Less than once in 10 times" : tenths > 9 ? "Nearly always" : `About ${tenths} time${tenths > 1 ? "s" : ""} in 10`;
  const whose = model?.confidence?.reference === "model" ? "this model's median caption" : "a typical person's";
  const meaning = `${often}, a caption like this is as good as ${whose}.`;
  const meter = result.querySelector(".meter");
  meter.setAttribute("aria-valuenow", value);
  meter.setAttribute("aria-valuetext", `${value.toFixed(2)}. ${meaning}`);
  meter.firstElementChild.style.width = `${100 * value}%`;
  byId("confidence-value").textContent = value.toFixed(2);
  byId("confidence-words").textContent = meaning;
}

// The search, and the caption to take away.

let resting = 0;
watchSliders(() => {
  clearTimeout(resting);
  if (!stage.hidden) resting = setTimeout(describe, PATIENCE);
});
byId("copy").hidden = !navigator.clipboard?.writeText;
byId("copy").addEventListener("click", async ({ target }) => {
  if (!answer) return;
  await navigator.clipboard.writeText(answer.caption).catch(() => {});
  target.textContent = "Copied";
  setTimeout(() => { target.textContent = "Copy caption"; }, 1500);
});

// The model card and the examples.

function showModel() {
  byId("model-name").textContent = `${model.decoder.replaceAll("_", " ")} on ${model.backbone.split(" ")[0]}`;
  const { confidence, limits } = model;
  const facts = {
    "Folder": model.name,
    "Sees with": model.backbone,
    "Speaks with": model.decoder.replaceAll("_", " "),
    "Knows": `${model.vocabulary_size.toLocaleString("en")} words`,
    "Looks at": model.attention ? "a part of the photo for each word" : "the whole photo at once",
    "Confidence": confidence ? `calibrated on ${confidence.images.toLocaleString("en")} images` : "not calibrated",
    "Takes": `up to ${limits.max_bytes / 1e6} MB and ${limits.max_pixels / 1e6} megapixels`,
    "Version": `showtell ${model.version}`,
  };
  byId("card").replaceChildren(...Object.entries(facts).map(([name, fact]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: fact }))));
  byId("card-text").hidden = !model.card;
  byId("card-text").replaceChildren(...renderCard(model.card ?? ""));
  byId("examples").hidden = !model.examples.length;
  byId("examples").querySelector("ul").replaceChildren(...model.examples.map(({ url }, i) => {
    const picked = element("img", { src: url, alt: `Example ${i + 1}`, loading: "lazy" });
    const button = element("button", { type: "button" }, picked);
    button.addEventListener("click", async () => {
      const response = await fetch(url).catch(() => null);
      if (response?.ok) take(await response.blob());
      else fail("The server cannot be reached. Is it still running?");
    });
    return element("li", {}, button);
  }));
}

byId("example-call").textContent =
  `curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' \\\n  '${new URL("api/caption?alternatives=2", location)}'`;
try {
  model = await (await fetch("api/model")).json();
  setOwnSearch(model);
  showModel();
} catch {
  fail("The server cannot be reached. Is it still running?");
}
