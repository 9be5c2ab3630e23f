// One question and its answers on the page. Everything is drawn from `state`, so that a change of
// language can draw it again; tokens alone are appended where they belong.
import { bar, byId, h } from "./dom.js";
import { ClinicError, problemBox } from "./errors.js";
import { marked } from "./evidence.js";
import { footnoted, noticeText, sourceList } from "./footnotes.js";
import { duration, has, number, percent, specialtyName, t } from "./i18n.js";

export class Result {
  #state = null;
  #texts = new Map(); // opinion -> the text node that grows
  #askModel;

  /** askModel: asks the same question again, for an answer by a model where passages were quoted. */
  constructor(askModel) {
    this.#askModel = askModel;
  }

  begin(question, numExpected) {
    const opinions = new Map();
    for (let i = 0; i < numExpected; i += 1) opinions.set(`expected ${i}`, { text: "" });
    this.#state = { question, opinions, route: null, phase: "routing", problem: null, actions: [] };
    byId("result").hidden = false;
    byId("ask-view").classList.add("has-result");
    this.draw();
    scrollToAnswer();
  }

  routed(route) {
    const state = this.#state;
    state.route = route;
    state.phase = "answering";
    state.opinions = new Map(route.opinions.map((head) => [head.opinion, { head, text: "" }]));
    this.draw();
  }

  cited({ opinion, citations }) {
    this.#state.opinions.get(opinion).citations = citations;
  }

  token({ opinion, text }) {
    this.#state.opinions.get(opinion).text += text;
    const node = this.#texts.get(opinion);
    node.appendData(text);
    node.parentElement.classList.remove("waiting");
  }

  answered(answer) {
    const opinion = this.#state.opinions.get(answer.opinion);
    opinion.end = answer;
    opinion.text = answer.answer ?? opinion.text; // what was sent is taken back
    this.draw();
  }

  /** phase: "done", "stopped" or "failed"; `problem` is a ClinicError, `actions` make its buttons. */
  end(phase, problem = null, actions = []) {
    Object.assign(this.#state, { phase, problem, actions });
    this.draw();
  }

  get hasText() {
    return [...this.#state.opinions.values()].some((opinion) => opinion.text);
  }

  draw() {
    const state = this.#state;
    if (!state) return;
    const evidence = state.route?.evidence ?? [];
    byId("asked").replaceChildren(
      h("span", { class: "asked-label" }, t("result.asked")),
      " ",
      h("q", {}, ...marked(state.question, evidence)),
    );
    const { problem, actions } = state;
    const buttons = problem ? actions.map((make) => make()) : [];
    byId("problem").replaceChildren(...(problem ? [problemBox(problem, ...buttons)] : []));
    this.#drawOpinions(state);
    this.#drawUrgent(state.route);
    byId("why").hidden = state.route === null;
    byId("columns").dataset.routed = state.route ? String(state.opinions.size) : "";
    if (state.route) byId("why-body").replaceChildren(...why(state));
  }

  /** Only where it changes, so that a screen reader says it once. */
  #drawUrgent(route) {
    const text = route?.notices.includes("urgent") ? t("notice.urgent") : "";
    const box = byId("urgent");
    if (box.textContent !== text) box.textContent = text;
  }

  #drawOpinions(state) {
    this.#texts.clear();
    const failedEarly = state.phase !== "routing" && state.route === null;
    const cards = failedEarly
      ? []
      : [...state.opinions].map(([key, o]) => this.#card(key, o, state));
    const box = byId("opinions");
    box.dataset.count = String(cards.length);
    box.setAttribute("aria-busy", String(state.phase === "routing" || state.phase === "answering"));
    box.replaceChildren(...cards);
  }

  #modelButton() {
    const onclick = () => this.#askModel();
    return h("button", { type: "button", class: "secondary", onclick }, t("sources.ask_model"));
  }

  #card(key, opinion, state) {
    const { head, text, end, citations = [] } = opinion;
    const isOpen = !end && (state.phase === "routing" || state.phase === "answering");
    const node = document.createTextNode(text);
    this.#texts.set(key, node);
    const waiting = isOpen && !text ? " waiting" : "";
    const support = end?.support ?? [];
    const isQuoted = Boolean(end?.usage) && !end.usage.completion_tokens && citations.length > 0;
    const body = h(
      "p",
      {
        class: `text${isOpen ? " open" : ""}${waiting}`,
        lang: isQuoted ? citations[0].language : spoken(state.route),
      },
      ...(end ? footnoted(text, support, citations, key) : [node]),
    );
    const late = (end?.notices ?? []).filter((notice) => !state.route.notices.includes(notice));
    return h(
      "section",
      { class: "card opinion" },
      cardHead(head, state.route),
      body,
      ...late.map((notice) => h("p", { class: "notice" }, noticeText(notice))),
      ...(end ? sourceList(citations, support, key) : []),
      mayAskModel(opinion, state.route) ? this.#modelButton() : null,
      end?.error && !state.problem ? problemBox(failureOf(end.error)) : null,
      h("p", { class: "facts" }, ...facts(end, isOpen, state)),
    );
  }
}

/** Whether no model was asked, and one may be: passages were quoted, or there were none. */
function mayAskModel({ end, citations }, route) {
  if (!citations || !end?.usage || end.usage.completion_tokens) return false;
  return !route.notices.includes("matching_signs");
}

/** On a small screen the answer would begin out of sight. */
function scrollToAnswer() {
  if (byId("opinions").getBoundingClientRect().top < innerHeight * 0.6) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("result").scrollIntoView({ behavior: isStill ? "instant" : "smooth", block: "start" });
}

/** The language of the answer's text; null: the page's own. */
function spoken(route) {
  if (!route || route.language === "und") return null;
  return route.notices.includes("language_not_supported") ? "en" : route.language;
}

/** Of one opinion among several; when all have failed, the box above the answers says it once. */
const failureOf = (error) => new ClinicError(500, error);

function cardHead(head, route) {
  if (!head) return h("header", {}, h("h3", { class: "who-name pending" }, t("result.routing")));
  const hasShare = head.probability !== null && head.probability !== undefined;
  const isShown = hasShare && route.opinions.length > 1;
  const by = head.adapter
    ? t("result.adapter", { adapter: head.adapter, version: head.adapter_version ?? "?" })
    : t("result.base");
  return h(
    "header",
    {},
    h(
      "h3",
      { class: "who-name" },
      head.specialty ? specialtyName(head.specialty) : t("result.generalist"),
    ),
    h("p", { class: "by" }, by),
    isShown
      ? h("p", { class: "share" }, bar(head.probability), h("span", {}, percent(head.probability)))
      : null,
  );
}

/** The line under an answer: how it ended, how long it is, how long it took. */
function facts(end, isOpen, state) {
  if (isOpen) return [t(state.phase === "routing" ? "result.reading" : "result.writing")];
  if (!end || end.error)
    return [t(state.phase === "stopped" ? "finish.stopped_by_you" : "finish.cut")];
  const parts = [];
  if (end.finish_reason) parts.push(t(`finish.${end.finish_reason}`));
  if (end.usage) parts.push(t("result.tokens", { n: number(end.usage.completion_tokens) }));
  const timings = end.timings_ms ?? {};
  for (const name of ["queue", "first_token", "total"]) {
    const ms = timings[name];
    if (ms !== null && ms !== undefined) parts.push(t(`timing.${name}`, { time: duration(ms) }));
  }
  return parts.map((part) => h("span", {}, part));
}

function why({ route, opinions }) {
  const name = specialtyName(route.specialty ?? route.alternatives[0]?.specialty);
  const second = specialtyName(route.alternatives[1]?.specialty);
  const isHeard = route.reason === "ambiguous" && opinions.size > 1;
  const code = isHeard ? "ambiguous_heard" : route.reason;
  const reason = t(has(`reason.${code}`) ? `reason.${code}` : "reason.unknown", {
    specialty: name,
    second,
    reason: route.reason,
  });
  const times = [...opinions.values()].map((opinion) => opinion.end?.timings_ms?.route);
  const routeMs = route.confidence === null ? undefined : times.find((ms) => ms !== undefined);
  return [
    h(
      "div",
      {},
      h("p", { class: "reason" }, reason),
      ...route.notices
        .filter((notice) => notice !== "urgent") // stands above the answer
        .map((notice) => h("p", { class: "notice" }, noticeText(notice))),
      h(
        "p",
        { class: "facts" },
        h(
          "span",
          {},
          t(has(`language.${route.language}`) ? `language.${route.language}` : "language.other"),
        ),
        routeMs === undefined
          ? null
          : h("span", {}, t("timing.route", { time: duration(routeMs) })),
      ),
    ),
    listed(
      route.in_scope === false ? "why.sure_if" : "why.sure",
      "bars",
      route.alternatives.map(alternative),
    ),
    listed(
      "why.evidence",
      "phrases",
      route.evidence.map((phrase) => h("li", {}, phrase)),
    ),
  ].filter((part) => part !== null);
}

const listed = (key, name, items) =>
  items.length ? h("div", {}, h("h4", {}, t(key)), h("ul", { class: name }, ...items)) : null;

function alternative({ specialty, probability }) {
  return h(
    "li",
    {},
    h("span", { class: "name" }, specialtyName(specialty)),
    h("span", { class: "value" }, percent(probability)),
    bar(probability),
  );
}
