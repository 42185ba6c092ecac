// Elements of the page. Text is always inserted as text: captions and model cards are untrusted.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
