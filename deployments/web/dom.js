// Elements. Text goes in as text nodes, never as HTML.

export const byId = (id) => document.getElementById(id);

/** h("p", {class: "note", hidden: true}, "text", child, ...) -> element; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A horizontal bar of `share` (0 to 1) of the width; the number beside it says the same. */
export function bar(share) {
  const element = h("span", { class: "bar", "aria-hidden": "true" });
  element.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
  return element;
}
