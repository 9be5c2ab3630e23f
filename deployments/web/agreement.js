// Whether the model replicas hold what the newest revision of the catalogue says. No drawing here.

const keyOf = ({ version, digest }) => `${version}#${digest ?? ""}`;
const serviceOf = ({ state, weight, pinned }) => `${state} ${weight ?? ""} ${pinned ?? false}`;

/**
 * Adapters by name, as the replicas of the newest revision hold them, and what each replica makes
 * of it. Before any replica has answered, `revision` is null and nothing is expected.
 */
export class Agreement {
  #expected = new Map();

  constructor(replicas) {
    const answered = replicas.filter((replica) => !replica.problem);
    const revisions = answered.map((r) => r.adapters_revision).filter(Number.isInteger);
    this.revision = revisions.length ? Math.max(...revisions) : null;
    for (const replica of answered.filter((r) => !this.isBehind(r))) {
      for (const entry of replica.adapters) {
        if (!this.#expected.has(entry.name)) this.#expected.set(entry.name, new Map());
        this.#expected.get(entry.name).set(keyOf(entry), entry);
      }
    }
  }

  isBehind({ adapters_revision: revision }) {
    return Number.isInteger(revision) && revision < this.revision;
  }

  /** Whether a version is not in service in the newest revision. */
  isOutdated(entry) {
    return !this.#expected.get(entry.name)?.has(keyOf(entry));
  }

  /** Versions of an adapter that the newest revision has in service and this replica does not. */
  missing(replica, name) {
    const held = new Set(versionsOf(replica, name).map(keyOf));
    return [...(this.#expected.get(name)?.values() ?? [])].filter((e) => !held.has(keyOf(e)));
  }

  /** Whether a replica that answered holds an adapter otherwise: versions, trial, pin. */
  differs(replica, name) {
    if (replica.problem) return false;
    const expected = this.#expected.get(name);
    return (
      this.missing(replica, name).length > 0 ||
      versionsOf(replica, name).some(
        (e) => this.isOutdated(e) || serviceOf(e) !== serviceOf(expected.get(keyOf(e))),
      )
    );
  }
}

/** The versions of an adapter that a replica has in service. */
export const versionsOf = (replica, name) =>
  (replica.adapters ?? []).filter((entry) => entry.name === name);
