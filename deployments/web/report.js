// Draws GET /v1/operator: figures, replicas, adapters per replica, traffic, confidence.
import { adapters } from "./adapters.js";
import { bar, h } from "./dom.js";
import { duration, has, number, percent, span, specialtyName, t } from "./i18n.js";
import { shortName, table } from "./table.js";

export function drawReport(box, report) {
  const scrolled = [...box.querySelectorAll(".scroll")].map((region) => region.scrollLeft);
  const focused = [...box.querySelectorAll(".scroll")].indexOf(document.activeElement);
  box.replaceChildren(
    tiles(report),
    section("operator.adapters", adapters(report.models)),
    h(
      "div",
      { class: "pair" },
      section("operator.confidence", histogram(report.all_routers.confidence)),
      section("operator.traffic", traffic(report.all_routers)),
    ),
    section("operator.models", models(report.models)),
    section("operator.routers", routers(report.routers)),
  );
  const regions = [...box.querySelectorAll(".scroll")];
  regions.forEach((region, i) => {
    region.scrollLeft = scrolled[i] ?? 0;
  });
  if (focused >= 0) regions[focused]?.focus({ preventScroll: true });
}

function section(key, ...content) {
  return h(
    "section",
    { class: "card panel" },
    h("h2", { class: "small-title" }, t(key)),
    ...content,
  );
}

function tiles({
  models: modelReplicas,
  routers: routerReplicas,
  all_routers: all,
  windows_s: windows,
}) {
  const up = (replicas) => replicas.filter((replica) => !replica.problem).length;
  const numUp = [up(modelReplicas), up(routerReplicas)];
  const numSilent = modelReplicas.length + routerReplicas.length - numUp[0] - numUp[1];
  const running = sum(modelReplicas, "rows_running");
  const waiting = sum(modelReplicas, "requests_waiting");
  const tile = (label, value, more) =>
    h("div", { class: "tile" }, h("dt", {}, label), h("dd", {}, value, h("small", {}, more)));
  return h(
    "dl",
    { class: "tiles" },
    tile(
      t("tile.requests"),
      number(all.num_requests),
      t("tile.uptime", { time: span(all.uptime_s) }),
    ),
    tile(
      t("tile.tokens"),
      number(all.tokens_per_s, 1),
      t("tile.window", { time: span(windows.tokens) }),
    ),
    tile(
      t("tile.first_token"),
      duration(all.first_token_ms.p50),
      t("tile.p95", { time: duration(all.first_token_ms.p95) }),
    ),
    tile(
      t("tile.total"),
      duration(all.total_ms.p50),
      t("tile.p95", { time: duration(all.total_ms.p95) }),
    ),
    tile(t("tile.rows"), number(running), t("tile.waiting", { n: number(waiting) })),
    tile(
      t("tile.replicas"),
      numUp.map((num) => number(num)).join(" + "),
      numSilent ? t("tile.silent", { n: number(numSilent) }) : t("tile.kinds"),
    ),
  );
}

const sum = (entries, field) => entries.reduce((total, entry) => total + (entry[field] ?? 0), 0);

function histogram(counts) {
  const all = counts.reduce((a, b) => a + b, 0);
  if (!all) return h("p", { class: "note" }, t("operator.nothing"));
  const most = Math.max(...counts);
  const columns = counts.map((count, bin) => {
    const range = `${bin * 10}-${bin * 10 + 10}`;
    const column = h(
      "li",
      {},
      h("span", { class: "count" }, count ? number(count) : ""),
      h("span", { class: "column", "aria-hidden": "true" }),
      h(
        "span",
        { class: "bin" },
        h("span", { "aria-hidden": "true" }, number(bin * 10)),
        h("span", { class: "visually-hidden" }, t("operator.bin", { range, n: number(count) })),
      ),
    );
    column.style.setProperty("--share", String(count / most));
    return column;
  });
  return h(
    "div",
    {},
    h("ol", { class: "histogram" }, ...columns),
    h("p", { class: "note" }, t("operator.confidence_note", { n: number(all) })),
  );
}

function traffic({ requests, num_requests: all }) {
  const rows = requests.map(({ specialty, adapter, outcome, count }) => [
    specialtyName(specialty),
    adapter ?? t("operator.base"),
    h("code", {}, outcome),
    number(count),
    h("span", { class: "share" }, bar(count / all), h("span", {}, percent(count / all))),
  ]);
  const heads = ["specialty", "adapter", "outcome", "count", "share"].map((name) =>
    t(`col.${name}`),
  );
  return table("operator.traffic", heads, rows);
}

function models(replicas) {
  const newest = newestOf(replicas, "adapters_revision");
  const rows = replicas.map((replica) => [
    shortName(replica.replica),
    ...(replica.problem
      ? problemCells(replica, 7)
      : [
          revision(replica.adapters_revision, newest),
          number(replica.rows_running),
          number(replica.requests_waiting),
          number(replica.adapters.length),
          skipped(replica),
          h("code", {}, replica.decoder),
          `${replica.device}, ${replica.dtype}`,
        ]),
  ]);
  const heads = [
    "replica",
    "revision",
    "running",
    "waiting",
    "adapters",
    "skipped",
    "decoder",
    "device",
  ].map((name) => t(`col.${name}`));
  return table("operator.models", heads, rows);
}

function skipped({ adapters_skipped: why = {} }) {
  const names = Object.keys(why);
  return names.length
    ? h(
        "span",
        {
          title: Object.entries(why)
            .map((pair) => pair.join(": "))
            .join("\n"),
        },
        names.join(", "),
      )
    : number(0);
}

/** The highest revision of the catalogue that a replica is at; null: none says. */
function newestOf(replicas, field) {
  const known = replicas.map((replica) => replica[field]).filter(Number.isInteger);
  return known.length ? Math.max(...known) : null;
}

function revision(value, newest) {
  if (!Number.isInteger(value)) return t("time.none");
  if (value === newest) return number(value);
  return h("span", { class: "chip bad" }, t("operator.behind", { revision: number(value) }));
}

function routers(replicas) {
  const newest = newestOf(replicas, "catalog_revision");
  const rows = replicas.map((replica) => [
    shortName(replica.replica),
    ...(replica.problem
      ? problemCells(replica, 6)
      : [
          revision(replica.catalog_revision, newest),
          span(replica.uptime_s),
          number(replica.num_requests),
          number(replica.tokens_per_s, 1),
          `${duration(replica.first_token_ms.p50)} / ${duration(replica.first_token_ms.p95)}`,
          `${duration(replica.total_ms.p50)} / ${duration(replica.total_ms.p95)}`,
        ]),
  ]);
  const heads = [
    "replica",
    "revision",
    "uptime",
    "count",
    "tokens",
    "first_token",
    "total",
  ].map((name) => t(`col.${name}`));
  return table("operator.routers", heads, rows);
}

/** A silent replica: the problem, and nothing in the cells after it. */
function problemCells({ problem, message }, num) {
  const words = has(`problem.${problem}`) ? t(`problem.${problem}`) : message;
  return [h("span", { class: "chip bad" }, words), ...Array.from({ length: num - 1 }, () => "")];
}
