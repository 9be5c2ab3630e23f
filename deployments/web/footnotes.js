// What an answer stands on: markers that show their passage, sentences without support, the sources.
import { h } from "./dom.js";
import { has, t } from "./i18n.js";

const NOTE_CHARS = 600; // of a passage, in a note; the list of sources has all of it
const MARKER = /\[(\d+)\]/g;

/** The text as nodes; `support` counts characters as code points. `key` names the opinion. */
export function footnoted(text, support, citations, key) {
  const characters = Array.from(text);
  const piece = (start, end) => characters.slice(start, end).join("");
  const byNumber = new Map(citations.map((citation) => [citation.number, citation]));
  const nodes = [];
  let from = 0;
  for (const { start, end, citation } of support) {
    nodes.push(...withMarkers(piece(from, start), byNumber, key));
    const inside = withMarkers(piece(start, end), byNumber, key);
    if (citation === null) {
      inside.push(h("span", { class: "visually-hidden" }, ` (${t("sources.unsupported")})`));
      nodes.push(h("span", { class: "unsupported" }, ...inside));
    } else nodes.push(...inside);
    from = end;
  }
  nodes.push(...withMarkers(piece(from), byNumber, key));
  return nodes;
}

function withMarkers(text, byNumber, key) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(MARKER)) {
    const citation = byNumber.get(Number(match[1]));
    if (!citation) continue;
    nodes.push(text.slice(from, match.index), footnote(citation, key));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

let numNotes = 0; // each note has an id of its own

/** A marker, and its note: shown while the pointer or the focus is there; Escape hides it. */
function footnote(citation, key) {
  numNotes += 1;
  const id = `note-${key}-${numNotes}`;
  const { number, title, text, source, licence, language } = citation;
  const label = t("sources.marker", { n: number, title });
  const marker = h(
    "button",
    { type: "button", class: "marker", "aria-label": label, "aria-describedby": id },
    `[${number}]`,
  );
  const isCut = text.length > NOTE_CHARS;
  const note = h(
    "span",
    { class: "footnote-note", role: "tooltip", id, hidden: true },
    h("strong", { lang: language }, title),
    h("span", { lang: language }, isCut ? `${text.slice(0, NOTE_CHARS)} …` : text),
    h("span", { class: "origin" }, `${source}. ${t("sources.licence", { licence })}`),
  );
  const box = h("span", { class: "footnote" }, marker, note);
  const show = () => {
    note.style.setProperty("--top", `${marker.offsetTop + marker.offsetHeight}px`);
    note.hidden = false;
  };
  const hide = () => {
    note.hidden = true;
  };
  box.addEventListener("mouseenter", show);
  box.addEventListener("mouseleave", () => {
    if (document.activeElement !== marker) hide();
  });
  marker.addEventListener("focus", show);
  marker.addEventListener("blur", hide);
  marker.addEventListener("click", () => {
    marker.focus(); // some browsers do not give a button the focus
    show();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || note.hidden) return;
    event.stopPropagation(); // it would stop the answer
    hide();
  });
  return box;
}

/** The list under an answer: every passage whole, its source, licence and address. */
export function sourceList(citations, support, key) {
  const isMarked = support.some((sentence) => sentence.citation === null);
  return [
    isMarked ? h("p", { class: "legend" }, t("sources.legend")) : null,
    citations.length
      ? h(
          "div",
          { class: "sources" },
          h("h4", { id: `sources-${key}` }, t("sources.title")),
          h("ol", { "aria-labelledby": `sources-${key}` }, ...citations.map(listed)),
        )
      : null,
  ].filter((part) => part !== null);
}

function listed({ number, title, text, source, licence, url, language }) {
  return h(
    "li",
    {},
    h(
      "details",
      {},
      h("summary", {}, `[${number}] `, h("span", { lang: language }, title)),
      h("p", { class: "passage", lang: language }, text),
      h(
        "p",
        { class: "origin" },
        `${source}. ${t("sources.licence", { licence })} `,
        isWeb(url) ? h("a", { href: url, rel: "noopener noreferrer" }, t("sources.open")) : null,
      ),
    ),
  );
}

const isWeb = (url) => /^https?:\/\//.test(url ?? "");

/** A note from the server, in words. */
export const noticeText = (notice) =>
  has(`notice.${notice}`) ? t(`notice.${notice}`) : t("notice.unknown", { notice });
