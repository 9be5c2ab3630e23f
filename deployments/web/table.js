// The operator's tables.
import { h } from "./dom.js";
import { t } from "./i18n.js";

/**
 * `rows`: lists of cells (text or element); the first cell of each is its header.
 * `hides`: "second" leaves the second column out on a phone.
 */
export function table(key, heads, rows, hides = null) {
  if (!rows.length) return h("p", { class: "note" }, t("operator.nothing"));
  const row = ([first, ...rest]) =>
    h("tr", {}, h("th", { scope: "row" }, first), ...rest.map((cell) => h("td", {}, cell)));
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": t(key), "data-hides": hides },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...rows.map(row)),
    ),
  );
}

export const shortName = (replica) =>
  replica ? replica.slice(0, 6) : t("operator.unknown_replica");
