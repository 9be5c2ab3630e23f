// Who is on duty: specialties and base model, from /readyz, asked again until the clinic is ready.
import { byId, h } from "./dom.js";
import { onLanguage, specialtyName, t } from "./i18n.js";

const RETRY_MS = 4000;

export class Roster {
  specialties = [];
  withoutAdapter = new Set();
  #state = "loading"; // or "ready", "starting", "unreachable"
  #model = null;
  #listeners = [];

  start() {
    onLanguage(() => this.#draw());
    this.#load();
  }

  onChange(listener) {
    this.#listeners.push(listener);
  }

  async #load() {
    try {
      const response = await fetch("readyz");
      const report = await response.json();
      const { router } = report;
      if (router) {
        this.specialties = [...router.specialties, ...(router.explicit_only ?? [])];
        this.withoutAdapter = new Set(router.without_adapter);
      }
      this.#state = response.ok ? "ready" : "starting";
      this.#model = response.ok ? report : null;
    } catch (error) {
      console.warn(error); // nobody there, or not JSON: the page says so and asks again
      this.#state = "unreachable";
    }
    if (this.#state !== "ready") setTimeout(() => this.#load(), RETRY_MS);
    this.#draw();
    for (const listener of this.#listeners) listener();
  }

  #draw() {
    const isReady = this.#state === "ready";
    byId("duty-state").textContent = isReady ? "" : t(`duty.${this.#state}`);
    const byName = [...this.specialties].sort((a, b) =>
      specialtyName(a).localeCompare(specialtyName(b)),
    );
    byId("duty").replaceChildren(...byName.map((name) => this.#line(name)));
    byId("foot-model").textContent = isReady
      ? t("foot.model", { model: this.#model.base_model, device: this.#model.device })
      : "";
  }

  #line(name) {
    if (!this.withoutAdapter.has(name)) return h("li", {}, specialtyName(name));
    return h("li", { class: "off" }, specialtyName(name), " ", h("small", {}, t("duty.off")));
  }
}
