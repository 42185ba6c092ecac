"use strict";
// The gallery. All text goes in as text nodes: captions and ids are strangers' words.
(() => {
  const AT_ONCE = 48; // cards added at a time, so that opening and sorting stay quick
  const ORDERS = {
    id: ["A to Z", "Z to A"],
    cider: ["worst to best", "best to worst"],
    rouge: ["worst to best", "best to worst"],
    words: ["shortest first", "longest first"],
  };
  const at = (id) => document.getElementById(id);
  const [gallery, cards, more, found] = ["gallery", "cards", "more", "found"].map(at);
  const [find, where, sort, order] = ["find", "where", "sort", "order"].map(at);
  const number = new Intl.NumberFormat("en");

  const images = JSON.parse(at("data").textContent).map(
    ([id, caption, references, cider, rouge, words, width, height, jpeg], place) => ({
      id, caption, references, cider, rouge, words, width, height, jpeg, place,
      ours: " " + caption.toLowerCase(),
      theirs: references.map((one) => " " + one.toLowerCase()).join(""),
      name: id.toLowerCase(),
    })
  );
  let matches = images;
  let terms = [];
  let shown = 0;

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // The text, with the beginnings of words that were searched for marked.
  function marked(tag, name, text) {
    const made = element(tag, name);
    const wanted = terms.flatMap((term) => term.split(/\s+/));
    for (const word of text.split(/(\s+)/)) {
      const low = word.toLowerCase();
      const hit = wanted.filter((term) => low.startsWith(term)).sort((a, b) => b.length - a.length)[0];
      if (hit) made.append(element("mark", "", word.slice(0, hit.length)), word.slice(hit.length));
      else made.append(word);
    }
    return made;
  }

  function measure(name, value) {
    const made = element("span", "", name + " ");
    made.append(element("b", "", value));
    return made;
  }

  function card(image) {
    const made = element("li", "image card");
    made.tabIndex = -1;
    const image = element("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.width = image.width;
    image.height = image.height;
    image.alt = "Image " + image.id;
    image.src = "data:image/jpeg;base64," + image.jpeg;
    const measures = element("p", "measures");
    measures.append(
      measure("CIDEr", image.cider.toFixed(1)),
      measure("ROUGE-L", image.rouge.toFixed(1)),
      measure("words", String(image.words))
    );
    const theirs = element("ul");
    theirs.setAttribute("aria-label", "References");
    theirs.append(...image.references.map((one) => marked("li", "", one)));
    const said = marked("p", "caption", image.caption || "(no words)");
    made.append(image, said, measures, theirs, element("p", "id", image.id));
    return made;
  }

  function showMore() {
    const next = matches.slice(shown, shown + AT_ONCE).map(card);
    cards.append(...next);
    shown += next.length;
    const left = matches.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, AT_ONCE)} more`;
    found.textContent =
      (terms.length ? `${number.format(matches.length)} of ` : "") +
      `${number.format(images.length)} image${images.length === 1 ? "" : "s"}` +
      (terms.length ? " match" : "") +
      (matches.length ? "" : ": words are found by how they begin, phrases in quotes") +
      (left ? `, ${number.format(shown)} shown` : "");
    return next[0];
  }

  // An id is found by its beginning, or by any part of it with a digit: hexadecimal ids hold "bed".
  function named(image, term) {
    return image.name.startsWith(term) || (/\d/.test(term) && image.name.includes(term));
  }

  function show() {
    terms = [...find.value.toLowerCase().matchAll(/"([^"]*)"?|[^\s"]+/g)]
      .map(([word, phrase]) => (phrase ?? word).trim())
      .filter(Boolean);
    matches = images.filter((image) => {
      const text = where.value === "all" ? image.ours + image.theirs : image[where.value];
      return terms.every((term) => text.includes(" " + term) || named(image, term));
    });
    const key = sort.value === "id" ? "place" : sort.value;
    const sign = order.value === "down" ? -1 : 1;
    matches.sort((a, b) => sign * (a[key] - b[key]) || a.place - b.place);
    cards.replaceChildren();
    shown = 0;
    showMore();
  }

  function nameOrders() {
    [...order.options].forEach((option, i) => { option.textContent = ORDERS[sort.value][i]; });
  }

  images.sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  images.forEach((image, place) => { image.place = place; });
  find.addEventListener("input", show);
  where.addEventListener("change", show);
  order.addEventListener("change", show);
  sort.addEventListener("change", () => {
    nameOrders();
    order.value = sort.value === "id" ? "up" : "down"; // scores: the best first
    show();
  });
  more.addEventListener("click", () => showMore()?.focus());
  nameOrders();
  order.value = "up";
  at("without").remove(); // not <noscript>: it is also for a script that was blocked
  gallery.hidden = false;
  show();
})();
