// The question form: what is asked, whom, the stream that comes back, and stopping it.
import { Result } from "./answer.js";
import { byId, h } from "./dom.js";
import { call, ClinicError } from "./errors.js";
import { currentLanguage, onLanguage, specialtyName, t } from "./i18n.js";
import { askForKey, authorization } from "./key.js";
import { serverEvents } from "./sse.js";

const NUM_EXAMPLES = 4;

export function startAsk(roster) {
  const result = new Result(() => page.askModel());
  const page = new AskPage(result, roster);
  onLanguage(() => {
    page.relabel();
    result.draw();
  });
  roster.onChange(() => page.relabel());
}

class AskPage {
  #result;
  #roster;
  #controller = null; // of the question that is being answered
  #asked = null; // the last request
  #fieldError = null;

  constructor(result, roster) {
    this.#result = result;
    this.#roster = roster;
    const form = byId("ask-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("change", () => this.#showDetail());
    byId("question").addEventListener("input", () => this.#setFieldError(null));
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.#submit();
      }
    });
    byId("stop-button").addEventListener("click", () => this.#controller?.abort());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("key-dialog").open) this.#controller?.abort();
    });
    this.#showDetail(); // a reload keeps the choice in some browsers
  }

  relabel() {
    this.#setFieldError(this.#fieldError);
    const examples = Array.from({ length: NUM_EXAMPLES }, (_, i) => t(`example.${i + 1}`));
    byId("examples").replaceChildren(...examples.map((text) => h("li", {}, this.#example(text))));
    this.#fillSpecialties();
  }

  #example(text) {
    const onclick = () => {
      byId("question").value = text;
      this.#setFieldError(null);
      byId("question").focus();
    };
    return h("button", { type: "button", class: "example", onclick }, text);
  }

  #fillSpecialties() {
    const select = byId("specialty");
    const chosen = select.value;
    const { specialties, withoutAdapter } = this.#roster;
    const option = (name) => h("option", { value: name }, specialtyName(name));
    const sorted = [...specialties].sort((a, b) =>
      specialtyName(a).localeCompare(specialtyName(b), currentLanguage()),
    );
    const group = (label, names) =>
      names.length ? [h("optgroup", { label }, ...names.map(option))] : [];
    select.replaceChildren(
      ...group(
        t("duty.with"),
        sorted.filter((name) => !withoutAdapter.has(name)),
      ),
      ...group(
        t("duty.without"),
        sorted.filter((name) => withoutAdapter.has(name)),
      ),
    );
    if (specialties.includes(chosen)) select.value = chosen;
  }

  get #who() {
    return byId("ask-form").elements.who.value;
  }

  #showDetail() {
    byId("specialist-detail").hidden = this.#who !== "specialist";
    byId("consult-detail").hidden = this.#who !== "consult";
  }

  #setFieldError(key) {
    this.#fieldError = key;
    byId("question-error").textContent = key ? t(key) : "";
    byId("question").toggleAttribute("aria-invalid", key !== null);
    if (key) byId("question").setAttribute("aria-invalid", "true");
  }

  #submit() {
    if (this.#controller) return;
    const question = byId("question").value;
    const who = this.#who;
    if (!question.trim() || (who === "specialist" && !byId("specialty").value)) {
      this.#setFieldError(question.trim() ? "ask.no_specialty" : "ask.empty");
      byId(question.trim() ? "specialty" : "question").focus();
      return;
    }
    const body = { question, stream: true };
    if (who === "specialist") body.specialty = byId("specialty").value;
    if (who === "consult") body.consult = Number(byId("consult").value);
    this.#ask(body);
  }

  /** The same question again: the passages stand in the prompt, and the model writes. */
  askModel() {
    if (!this.#controller) this.#ask({ ...this.#asked, grounding: "cite" });
  }

  async #ask(body) {
    this.#asked = body;
    this.#controller = new AbortController();
    this.#setRunning(true);
    this.#result.begin(body.question, body.consult ?? 1);
    announce(t("result.routing"));
    try {
      const headers = { "content-type": "application/json", ...authorization() };
      const { signal } = this.#controller;
      const options = { method: "POST", headers, body: JSON.stringify(body), signal };
      await this.#follow(await call("ask", options));
      this.#result.end("done");
      announce(t("result.done"));
    } catch (error) {
      this.#ended(error, body);
    } finally {
      this.#controller = null;
      this.#setRunning(false);
    }
  }

  /** Every event of one answer, until the terminal one; a stream without it was cut. */
  async #follow(response) {
    const result = this.#result;
    for await (const { event, data } of serverEvents(response)) {
      if (event === "route") {
        result.routed(data);
        announce(t("result.answering", { who: data.opinions.map(speaker).join(", ") }));
      } else if (event === "citations") result.cited(data);
      else if (event === "token") result.token(data);
      else if (event === "answer") result.answered(data);
      else if (event === "done") return;
      else if (event === "error") throw new ClinicError(500, data.error);
    }
    throw new ClinicError(500, { code: "interrupted" });
  }

  #ended(error, body) {
    if (error.name === "AbortError") {
      this.#result.end("stopped");
      announce(t("finish.stopped_by_you"));
      return;
    }
    const isOurs = error instanceof ClinicError;
    if (!isOurs) console.warn(error); // the connection broke, or an event was not JSON
    const problem = isOurs ? error : new ClinicError(500, { code: "interrupted" });
    const again = () => this.#ask(body);
    const action = (key, onclick) => () =>
      h("button", { type: "button", class: "secondary", onclick }, t(key));
    const actions = [];
    if (problem.needsKey) actions.push(action("key.enter", () => askForKey(again)));
    else if (problem.mayRetry) actions.push(action("error.again", again));
    this.#result.end("failed", problem, actions);
    announce("");
    if (problem.needsKey) askForKey(again);
  }

  /** The button that had the focus goes away: the one in its place takes it. */
  #setRunning(isRunning) {
    const [ask, stop] = [byId("ask-button"), byId("stop-button")];
    const had = [ask, stop].includes(document.activeElement);
    ask.hidden = isRunning;
    stop.hidden = !isRunning;
    byId("welcome").hidden = true;
    byId("ask-view").classList.toggle("is-running", isRunning);
    if (had) (isRunning ? stop : ask).focus({ preventScroll: true });
  }
}

const speaker = ({ specialty }) => (specialty ? specialtyName(specialty) : t("result.generalist"));

/** For screen readers: the milestones, not the tokens. */
function announce(text) {
  byId("announcer").textContent = text;
}
