// The page: language, theme, the two views, and the parts that start here.
import { startAsk } from "./ask.js";
import { byId } from "./dom.js";
import { currentLanguage, onLanguage, setLanguage, t, translatePage } from "./i18n.js";
import { startKey } from "./key.js";
import { OperatorView } from "./operator.js";
import { Roster } from "./roster.js";
import { remember } from "./storage.js";

const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

function startTheme() {
  const button = byId("theme-button");
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", root.dataset.theme);
    show();
  });
  systemDark.addEventListener("change", show);
  show();
}

function startLanguage() {
  const button = byId("language-button");
  const other = () => (currentLanguage() === "fr" ? "en" : "fr");
  button.addEventListener("click", () => setLanguage(other()));
  onLanguage(() => {
    translatePage();
    button.lang = other();
    button.textContent = other() === "fr" ? "Français" : "English";
  });
}

function startViews(operator) {
  const show = () => {
    if (location.hash === "#main") return; // the skip link: the view stays
    const view = location.hash === "#operator" ? "operator" : "ask";
    byId("ask-view").hidden = view !== "ask";
    byId("operator-view").hidden = view !== "operator";
    for (const link of document.querySelectorAll("[data-view]")) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = view === "ask" ? "Polyclinic" : `${t("operator.title")} - Polyclinic`;
    operator.setVisible(view === "operator");
  };
  addEventListener("hashchange", show);
  onLanguage(show);
}

startTheme();
startLanguage();
startKey();
const roster = new Roster();
startAsk(roster);
roster.start();
startViews(new OperatorView());
