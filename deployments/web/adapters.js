// What each model replica holds: the operator's first table, and where the replicas disagree.
import { Agreement, versionsOf } from "./agreement.js";
import { h } from "./dom.js";
import { duration, number, percent, specialtyName, t } from "./i18n.js";
import { shortName, table } from "./table.js";

/** One row for each adapter, one column for each model replica, a chip for each version. */
export function adapters(replicas) {
  const agreement = new Agreement(replicas);
  const inService = replicas.flatMap((replica) => replica.adapters ?? []);
  const leaving = replicas.flatMap((replica) => replica.adapters_leaving ?? []);
  const names = [...new Set([...inService, ...leaving].map((entry) => entry.name))].sort();
  const hasSpecialty = inService.some((entry) => entry.specialty);
  const specialtyOf = (name) => {
    const found = inService.find((entry) => entry.name === name);
    return found ? specialtyName(found.specialty) : "";
  };
  const rows = names.map((name) => [
    head(name, replicas, agreement),
    ...(hasSpecialty ? [specialtyOf(name)] : []),
    ...replicas.map((replica) => held(replica, name, agreement)),
  ]);
  const heads = [
    t("col.adapter"),
    ...(hasSpecialty ? [t("col.specialty")] : []),
    ...replicas.map((r) => shortName(r.replica)),
  ];
  return h(
    "div",
    {},
    verdict(replicas, names, agreement),
    table("operator.adapters", heads, rows, hasSpecialty ? "second" : null),
    adapterErrors(replicas),
  );
}

/** One line above the table: whether every replica holds what the catalogue says. */
function verdict(replicas, names, agreement) {
  const { revision } = agreement;
  const told = replicas.flatMap((replica) => {
    const why = reasons(replica, names, agreement).join(", ");
    return why ? [`${shortName(replica.replica)} (${why})`] : [];
  });
  if (told.length) {
    const words = t("operator.differ", {
      revision: revision === null ? t("operator.unknown_revision") : number(revision),
      replicas: told.join("; "),
    });
    return h("p", { class: "verdict differ" }, words);
  }
  if (revision === null) return null;
  return h("p", { class: "verdict" }, t("operator.agree", { revision: number(revision) }));
}

/** Why a replica does not hold what the newest revision says; empty: it does. */
function reasons(replica, names, agreement) {
  if (replica.problem) return [t("problem.no_answer")];
  const isOther = names.some((name) => agreement.differs(replica, name));
  const hasFailed = replica.adapters_error || replica.adapters.some((entry) => entry.error);
  return [
    ...(agreement.isBehind(replica)
      ? [t("operator.at_revision", { revision: number(replica.adapters_revision) })]
      : []),
    ...(isOther ? [t("operator.other_versions")] : []),
    ...(hasFailed ? [t("operator.failed")] : []),
  ];
}

/** What a replica could not load or read, in the server's words. */
function adapterErrors(replicas) {
  const lines = replicas.flatMap(({ replica, adapters: entries = [], adapters_error: whole }) => [
    ...(whole ? [`${shortName(replica)}: ${whole}`] : []),
    ...entries
      .filter((e) => e.error)
      .map((e) => `${shortName(replica)}, ${e.name} ${e.version}: ${e.error}`),
  ]);
  return lines.length
    ? h("ul", { class: "errors", lang: "en" }, ...lines.map((line) => h("li", {}, line)))
    : null;
}

function head(name, replicas, agreement) {
  const differs = replicas.some((replica) => agreement.differs(replica, name));
  if (!differs) return name;
  return h(
    "span",
    { class: "held" },
    name,
    h("span", { class: "chip canary" }, t("operator.differs")),
  );
}

/** What one replica holds under a name: in service, missing there, and on its way out. */
function held(replica, name, agreement) {
  if (replica.problem) return h("span", { class: "chip bad" }, t("problem.no_answer"));
  const shown = [
    ...versionsOf(replica, name).map((entry) => inServiceChip(entry, agreement)),
    ...agreement
      .missing(replica, name)
      .map(({ version }) => chip("bad", [versionWords(version), t("operator.missing")])),
    ...(replica.adapters_leaving ?? [])
      .filter((entry) => entry.name === name)
      .map(({ version, running }) =>
        chip("off", [
          versionWords(version),
          t("operator.leaving"),
          t("operator.running", { n: number(running) }),
        ]),
      ),
  ];
  if (!shown.length) return h("span", { class: "chip off" }, t("operator.absent"));
  return h("ul", { class: "held" }, ...shown.map((entry) => h("li", {}, entry)));
}

function inServiceChip(entry, agreement) {
  const isOutdated = agreement.isOutdated(entry);
  const kind = entry.error
    ? "bad"
    : entry.state === "canary"
      ? "canary"
      : isOutdated
        ? "off"
        : "good";
  const words = [
    versionWords(entry.version),
    role(entry),
    label("tier", entry.tier),
    entry.pinned ? t("operator.pinned") : null,
    isOutdated ? t("operator.outdated") : null,
    entry.error ? t("operator.failed") : null,
  ];
  const details = [
    Number.isInteger(entry.answers) ? t("operator.answers", { n: number(entry.answers) }) : null,
    Number.isFinite(entry.load_s)
      ? t("operator.loaded", { time: duration(1000 * entry.load_s) })
      : null,
  ].filter(Boolean);
  return h(
    "span",
    {},
    chip(kind, words),
    details.length ? h("small", {}, details.join(", ")) : null,
  );
}

const chip = (kind, words) =>
  h("span", { class: `chip ${kind}` }, words.filter(Boolean).join(", "));

const versionWords = (version) => t("operator.version", { version });

function role({ state, weight }) {
  if (state === "canary" && Number.isFinite(weight)) {
    return t("operator.on_trial", { share: percent(weight) });
  }
  return label("state", state);
}

const STATES = new Set(["active", "canary"]);
const TIERS = new Set(["device", "host", "disk"]);

/** The report's own word where the catalogue has none: newer servers may have more states. */
function label(kind, value) {
  if (value === null || value === undefined) return null;
  const known = kind === "state" ? STATES : TIERS;
  return known.has(value) ? t(`${kind}.${value}`) : String(value);
}
