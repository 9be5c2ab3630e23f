// What each model replica holds: the operator's first table.
import { h } from "./dom.js";
import { specialtyName, t } from "./i18n.js";
import { shortName, table } from "./table.js";

/** One row for each adapter, one column for each model replica: version, state, tier. */
export function adapters(replicas) {
  const entries = replicas.flatMap((replica) => replica.adapters ?? []);
  const names = [...new Set(entries.map((entry) => entry.name))].sort();
  const hasSpecialty = entries.some((entry) => entry.specialty);
  const specialtyOf = (name) => entries.find((entry) => entry.name === name).specialty;
  const rows = names.map((name) => [
    name,
    ...(hasSpecialty ? [specialtyName(specialtyOf(name))] : []),
    ...replicas.map((replica) => held(replica, name)),
  ]);
  const heads = [
    t("col.adapter"),
    ...(hasSpecialty ? [t("col.specialty")] : []),
    ...replicas.map((r) => shortName(r.replica)),
  ];
  return h(
    "div",
    {},
    table("operator.adapters", heads, rows, hasSpecialty ? "second" : null),
    adapterErrors(replicas),
  );
}

/** What a replica could not load or read, in the server's words. */
function adapterErrors(replicas) {
  const lines = replicas.flatMap(({ replica, adapters: entries = [], adapters_error: whole }) => [
    ...(whole ? [`${shortName(replica)}: ${whole}`] : []),
    ...entries.filter((e) => e.error).map((e) => `${shortName(replica)}, ${e.name}: ${e.error}`),
  ]);
  return lines.length
    ? h("ul", { class: "errors", lang: "en" }, ...lines.map((line) => h("li", {}, line)))
    : null;
}

/** What one replica holds under a name: a chip for each version (a canary stands beside it). */
function held(replica, name) {
  const entries = (replica.adapters ?? []).filter((adapter) => adapter.name === name);
  if (replica.problem) return h("span", { class: "chip bad" }, t("problem.no_answer"));
  if (!entries.length) return h("span", { class: "chip off" }, t("operator.absent"));
  return h(
    "span",
    { class: "chips" },
    ...entries.map((entry) => {
      const words = [
        t("operator.version", { version: entry.version }),
        label("state", entry.state),
        label("tier", entry.tier),
      ];
      const kind = entry.error
        ? "bad"
        : entry.state === "canary"
          ? "canary"
          : entry.state === "disabled"
            ? "off"
            : "good";
      return h("span", { class: `chip ${kind}` }, words.filter(Boolean).join(", "));
    }),
  );
}

const STATES = new Set(["active", "canary", "disabled"]);
const TIERS = new Set(["device", "host", "disk", "remote"]);

/** The report's own word where the catalogue has none: newer servers may have more states. */
function label(kind, value) {
  if (value === null || value === undefined) return null;
  const known = kind === "state" ? STATES : TIERS;
  return known.has(value) ? t(`${kind}.${value}`) : String(value);
}
