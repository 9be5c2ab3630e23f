// What went wrong, and what to do next, in words.
import { h } from "./dom.js";
import { has, number, t } from "./i18n.js";

/** A refusal or a failure. `error` is the server's error object; null when it could not answer. */
export class ClinicError extends Error {
  constructor(status, error, { retryAfter = null, requestId = null } = {}) {
    super(error?.message ?? `status ${status}`);
    this.status = status;
    this.error = error ?? {};
    this.retryAfter = retryAfter;
    this.requestId = requestId ?? this.error.request_id ?? null;
  }

  /** The catalogue's key for it: by the error's code, else by the kind of status. */
  get key() {
    const { code } = this.error;
    if (code && has(`error.${code}`)) return `error.${code}`;
    if (this.status === 0) return "error.unreachable";
    if (this.status === 401) return "error.unauthorized";
    if (this.status === 403) return "error.forbidden";
    if (this.status === 429) return "error.rate_limited";
    if (this.status === 503) return "error.unavailable";
    return this.status >= 500 ? "error.server" : "error.request";
  }

  get needsKey() {
    return this.status === 401;
  }

  get mayRetry() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** fetch that throws ClinicError, also when nobody answers. An abort stays an AbortError. */
export async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ClinicError(0, null);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  throw new ClinicError(response.status, body?.error, {
    retryAfter: Number.isNaN(wait) ? null : wait,
    requestId: response.headers.get("x-request-id"),
  });
}

/** A box that says it; `actions` are buttons. */
export function problemBox(error, ...actions) {
  const { limit, message } = error.error;
  const next =
    error.retryAfter !== null ? t("error.retry_after", { n: number(error.retryAfter) }) : null;
  const said = message ? h("p", { class: "said", lang: "en" }, message) : null;
  const id = error.requestId
    ? h("p", { class: "said" }, `${t("error.request_id")} ${error.requestId}`)
    : null;
  const details =
    said || id ? h("details", {}, h("summary", {}, t("error.details")), said, id) : null;
  return h(
    "div",
    { class: "problem" },
    h(
      "p",
      { class: "problem-text" },
      t(error.key, { limit: limit === undefined ? "?" : number(limit) }),
    ),
    next ? h("p", {}, next) : null,
    details,
    actions.length ? h("div", { class: "inline" }, ...actions) : null,
  );
}
