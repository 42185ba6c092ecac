"use strict";
// The gallery. All text is inserted as text nodes: captions and ids are untrusted.
(() => {
  const PAGE_SIZE = 48; // cards added at a time, so that opening and sorting stay fast
  const ORDERS = {
    id: ["A to Z", "Z to A"],
    cider: ["worst to best", "best to worst"],
    rouge: ["worst to best", "best to worst"],
    words: ["shortest first", "longest first"],
    confidence: ["least sure first", "surest first"],
  };
  const byId = (id) => document.getElementById(id);
  const [gallery, cards, more, found] = ["gallery", "cards", "more", "found"].map(byId);
  const [find, where, sort, order] = ["find", "where", "sort", "order"].map(byId);
  const number = new Intl.NumberFormat("en");

  const images = JSON.parse(byId("data").textContent).map(
    ([id, caption, references, cider, rouge, words, width, height, jpeg, confidence]) => ({
      id, caption, references, cider, rouge, words, width, height, jpeg, confidence,
      ours: " " + caption.toLowerCase(),
      theirs: references.map((reference) => " " + reference.toLowerCase()).join(""),
      name: id.toLowerCase(),
    })
  );
  let matches = images;
  let terms = [];
  let shown = 0;

  function element(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // The text, with the parts of its words that match the search highlighted.
  function highlighted(tag, name, text) {
    const node = element(tag, name);
    const prefixes = terms.flatMap((term) => term.split(/\s+/));
    for (const word of text.split(/(\s+)/)) {
      const lower = word.toLowerCase();
      const match = prefixes.filter((prefix) => lower.startsWith(prefix)).sort((a, b) => b.length - a.length)[0];
      if (match) node.append(element("mark", "", word.slice(0, match.length)), word.slice(match.length));
      else node.append(word);
    }
    return node;
  }

  function measure(name, value) {
    const node = element("span", "", name + " ");
    node.append(element("b", "", value));
    return node;
  }

  function card(image) {
    const node = element("li", "image card");
    node.tabIndex = -1;
    const img = element("img");
    img.loading = "lazy";
    img.decoding = "async";
    img.width = image.width;
    img.height = image.height;
    img.alt = "Image " + image.id;
    img.src = "data:image/jpeg;base64," + image.jpeg;
    const scores = element("p", "measures");
    scores.append(
      measure("CIDEr", image.cider.toFixed(1)),
      measure("ROUGE-L", image.rouge.toFixed(1)),
      measure("words", String(image.words))
    );
    if (image.confidence !== null) scores.append(measure("confidence", image.confidence.toFixed(2)));
    const references = element("ul");
    references.setAttribute("aria-label", "References");
    references.append(...image.references.map((reference) => highlighted("li", "", reference)));
    const caption = highlighted("p", "caption", image.caption || "(no words)");
    node.append(img, caption, scores, references, element("p", "id", image.id));
    return node;
  }

  function showMore() {
    const next = matches.slice(shown, shown + PAGE_SIZE).map(card);
    cards.append(...next);
    shown += next.length;
    const left = matches.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, PAGE_SIZE)} more`;
    found.textContent =
      (terms.length ? `${number.format(matches.length)} of ` : "") +
      `${number.format(images.length)} image${images.length === 1 ? "" : "s"}` +
      (terms.length ? " match" : "") +
      (matches.length ? "" : ": type the beginning of a word, or a phrase in quotes") +
      (left ? `, ${number.format(shown)} shown` : "");
    return next[0];
  }

  // An id matches by its beginning, or by any part with a digit: hexadecimal ids contain "bed".
  function idMatches(image, term) {
    return image.name.startsWith(term) || (/\d/.test(term) && image.name.includes(term));
  }

  function show() {
    terms = [...find.value.toLowerCase().matchAll(/"([^"]*)"?|[^\s"]+/g)]
      .map(([word, phrase]) => (phrase ?? word).trim())
      .filter(Boolean);
    matches = images.filter((image) => {
      const text = where.value === "all" ? image.ours + image.theirs : image[where.value];
      return terms.every((term) => text.includes(" " + term) || idMatches(image, term));
    });
    const key = sort.value === "id" ? "position" : sort.value;
    const sign = order.value === "down" ? -1 : 1;
    matches.sort((a, b) => sign * (a[key] - b[key]) || a.position - b.position);
    cards.replaceChildren();
    shown = 0;
    showMore();
  }

  function nameOrders() {
    [...order.options].forEach((option, i) => { option.textContent = ORDERS[sort.value][i]; });
  }

  images.sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  images.forEach((image, position) => { image.position = position; });
  find.addEventListener("input", show);
  where.addEventListener("change", show);
  order.addEventListener("change", show);
  sort.addEventListener("change", () => {
    nameOrders();
    order.value = sort.value === "id" ? "up" : "down"; // the best scores first
    show();
  });
  more.addEventListener("click", () => showMore()?.focus());
  nameOrders();
  order.value = "up";
  byId("no-script").remove(); // not <noscript>: it also covers a blocked script
  gallery.hidden = false;
  show();
})();
