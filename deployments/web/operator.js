// The operator's view: asks /v1/operator every two seconds while it can be seen.
import { byId, h } from "./dom.js";
import { call, ClinicError, problemBox } from "./errors.js";
import { onLanguage, t } from "./i18n.js";
import { authorization } from "./key.js";
import { drawReport } from "./report.js";
import { getKey, setKey } from "./storage.js";

const PERIOD_MS = 2000;

const hasKey = () => getKey("admin_key") !== "";

export class OperatorView {
  #isVisible = false;
  #isPaused = false;
  #isAsking = false;
  #timer = null;
  #report = null;
  #problem = null;

  constructor() {
    byId("admin-form").addEventListener("submit", (event) => {
      event.preventDefault();
      setKey("admin_key", byId("admin-key").value.trim());
      byId("admin-key").value = "";
      this.#refresh();
    });
    byId("pause-button").addEventListener("click", () => {
      this.#isPaused = !this.#isPaused;
      this.#draw();
      this.#refresh();
    });
    byId("forget-button").addEventListener("click", () => {
      setKey("admin_key", "");
      this.#report = null;
      this.#refresh();
    });
    document.addEventListener("visibilitychange", () => this.#refresh());
    onLanguage(() => this.#draw());
  }

  setVisible(isVisible) {
    this.#isVisible = isVisible;
    this.#refresh();
  }

  async #refresh() {
    clearTimeout(this.#timer);
    if (!this.#isVisible || this.#isPaused || document.hidden || this.#isAsking) return;
    this.#isAsking = true;
    try {
      const headers = authorization(hasKey() ? "admin_key" : "key");
      const response = await call("v1/operator", { headers });
      this.#report = await response.json();
      this.#problem = null;
    } catch (error) {
      if (!(error instanceof ClinicError)) console.warn(error); // the reply was not JSON
      this.#problem = error instanceof ClinicError ? error : new ClinicError(500, null);
      if (this.#needsKey) this.#report = null;
    }
    this.#isAsking = false;
    this.#draw();
    if (!this.#needsKey) this.#timer = setTimeout(() => this.#refresh(), PERIOD_MS);
  }

  get #needsKey() {
    return this.#problem !== null && [401, 403].includes(this.#problem.status);
  }

  #draw() {
    const hasReport = this.#report !== null;
    this.#drawProblem();
    const wasHidden = byId("admin-form").hidden;
    byId("admin-form").hidden = !this.#needsKey;
    if (wasHidden && this.#needsKey && this.#isVisible) byId("admin-key").focus();
    byId("pause-button").hidden = !hasReport;
    byId("pause-button").textContent = t(this.#isPaused ? "operator.resume" : "operator.pause");
    byId("forget-button").hidden = !hasKey() || this.#needsKey;
    this.#drawState(hasReport);
    byId("report").hidden = !hasReport;
    if (hasReport) drawReport(byId("report"), this.#report);
  }

  /** Drawn only when it changes: an alert that is put back every two seconds is read out each time. */
  #drawProblem() {
    // The form alone asks for a first key; a box says what was wrong with one that was given.
    const isFirst = this.#problem?.status === 401 && !hasKey();
    const problem = isFirst ? null : this.#problem;
    const signature = problem ? `${problem.key} ${problem.error.message} ${t(problem.key)}` : "";
    const box = byId("operator-problem");
    if (box.dataset.shown === signature) return;
    box.dataset.shown = signature;
    box.replaceChildren(...(problem ? [problemBox(problem)] : []));
  }

  #drawState(hasReport) {
    const key = this.#isPaused
      ? "paused"
      : this.#problem
        ? "stale"
        : hasReport
          ? "live"
          : "loading";
    const state = byId("live-state");
    if (state.dataset.state === key && state.textContent === t(`operator.${key}`)) return;
    state.dataset.state = key;
    state.textContent = this.#needsKey ? "" : t(`operator.${key}`);
  }
}
