// Runs before the first paint: theme and language, so that neither flashes.
(function () {
  const root = document.documentElement;
  const read = (name) => {
    try {
      return localStorage.getItem(`polyclinic.${name}`);
    } catch {
      return null; // storage is blocked: the defaults hold
    }
  };
  const theme = read("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const language = read("language") ?? navigator.language.slice(0, 2);
  if (language === "fr") {
    root.lang = "fr";
    root.dataset.untranslated = "";
  }
})();
