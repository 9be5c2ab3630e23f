// Words in the reader's language. Catalogues hold plain text with {named} places.
import en from "./en.js";
import fr from "./fr.js";
import { remember } from "./storage.js";

const catalogues = { en, fr };
let language = document.documentElement.lang === "fr" ? "fr" : "en";
const listeners = [];

export const currentLanguage = () => language;
export const has = (key) => key in catalogues[language];

export function t(key, values = {}) {
  const text = catalogues[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

/** "infectious_disease" -> its name; one that was added live has no translation. */
export function specialtyName(specialty) {
  if (specialty === null || specialty === undefined) return t("specialty.none");
  const key = `specialty.${specialty}`;
  if (has(key)) return t(key);
  const words = specialty.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export const number = (value, digits = 0) =>
  value.toLocaleString(language, { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const percent = (share) =>
  share.toLocaleString(language, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });

/** Milliseconds in words: 134 ms, 8.1 s. */
export function duration(ms) {
  if (ms === null || ms === undefined) return t("time.none");
  if (ms < 1000) return t("time.ms", { n: number(ms, ms < 10 ? 1 : 0) });
  return t("time.s", { n: number(ms / 1000, ms < 10000 ? 1 : 0) });
}

/** Seconds of uptime in words: 40 s, 12 min, 3 h, 2 d. */
export function span(seconds) {
  const [unit, size] = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ].find(([, size]) => seconds >= size) ?? ["s", 1];
  return t(`time.${unit}`, { n: number(Math.floor(seconds / size)) });
}

/** Called now and whenever the language changes. */
export function onLanguage(listener) {
  listeners.push(listener);
  listener();
}

export function setLanguage(next) {
  language = next;
  remember("language", next);
  for (const listener of listeners) listener();
}

/** The page's own words: data-i18n is the text, data-i18n-label the accessible name. */
export function translatePage() {
  const root = document.documentElement;
  root.lang = language;
  for (const element of document.querySelectorAll("[data-i18n]")) {
    element.textContent = t(element.dataset.i18n);
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
  }
  delete root.dataset.untranslated;
}
