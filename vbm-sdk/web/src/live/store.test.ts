import { describe, expect, it } from "vitest";
import { event, operation, port, vm } from "./samples";
import {
  BEGINNING,
  EVENTS_KEPT,
  NO_TABLES,
  OPERATIONS_KEPT,
  eventsOf,
  find,
  nicsOf,
  operationsOf,
  reduce,
  runningOn,
  vmsOf,
  type Change,
  type Live,
} from "./store";

const web = vm("web", { state: "running" });
const loaded: Live = reduce(BEGINNING, {
  type: "loaded",
  tables: { ...NO_TABLES, vm: { [web.id]: web } },
  events: [event(3), event(1)],
  revision: 10,
});

function news(kind: string, id: string, revision: number, view?: unknown): Change {
  return { kind, id, revision, deleted: view === undefined, view };
}
const after = (live: Live, ...changes: Change[]) => reduce(live, { type: "changed", changes });

describe("what the page knows", () => {
  it("is loaded whole, with the newest events first", () => {
    expect(loaded.phase).toBe("ready");
    expect(loaded.revision).toBe(10);
    expect(loaded.events.map((e) => e.revision)).toEqual([3, 1]);
  });

  it("follows each change of a record", () => {
    const off = vm("web", { state: "off" });
    const db = vm("db", { state: "starting" });
    const next = after(loaded, news("vm", off.id, 11, off), news("vm", db.id, 12, db));
    expect(vmsOf(next).map((v) => [v.name, v.status.power?.state])).toEqual([
      ["db", "starting"],
      ["web", "off"],
    ]);
    expect(next.revision).toBe(12);
    expect(vmsOf(after(next, news("vm", web.id, 13))).map((v) => v.name)).toEqual(["db"]);
  });

  it("leaves the state before it as it was", () => {
    after(loaded, news("vm", web.id, 11));
    expect(vmsOf(loaded)).toEqual([web]);
  });

  it("is not troubled by kinds it does not know, by what is gone, or by a view that is no more", () => {
    const next = after(
      loaded,
      news("lease-of-tomorrow", "x", 11, {}),
      news("vm", "never-seen", 12),
      { kind: "vm", id: "gone-since", revision: 13, deleted: false },
      { kind: "__proto__", id: "x", revision: 14, deleted: false, view: {} },
    );
    expect(next.tables).toEqual(loaded.tables);
    expect(next.revision).toBe(14);
  });

  it("believes the watch more than an answer that comes late", () => {
    const late = vm("web", { state: "off" });
    expect(reduce(loaded, { type: "merged", table: "vm", record: late })).toBe(loaded);
    const fresh = vm("new", { state: "off" });
    const next = reduce(loaded, { type: "merged", table: "vm", record: fresh });
    expect(find(next.tables.vm, "new")).toEqual(fresh);
    expect(find(next.tables.vm, fresh.id)).toEqual(fresh);
  });

  it("keeps an event once, and not more than its share", () => {
    const twice = after(loaded, news("event", "event-3", 3, event(3)));
    expect(twice.events).toHaveLength(2);
    const many = Array.from({ length: EVENTS_KEPT + 20 }, (_, n) =>
      news("event", `event-${n + 100}`, n + 100, event(n + 100)),
    );
    const full = after(loaded, ...many);
    expect(full.events).toHaveLength(EVENTS_KEPT);
    expect(full.events[0]?.revision).toBe(EVENTS_KEPT + 119);
    expect(eventsOf(full, "id-other")).toEqual([]);
  });

  it("keeps the newest operations, and knows what goes on", () => {
    const many = Array.from({ length: OPERATIONS_KEPT + 5 }, (_, n) => {
      const at = new Date(Date.UTC(2026, 0, 1) + n * 1000).toISOString();
      return news("operation", `o${n}`, 20 + n, operation(`o${n}`, at, { state: "done" }));
    });
    const full = after(loaded, ...many);
    expect(operationsOf(full)).toHaveLength(OPERATIONS_KEPT);
    expect(operationsOf(full)[0]?.id).toBe(`o${OPERATIONS_KEPT + 4}`);
    expect(runningOn(full, "id-web")).toBeUndefined();
    const busy = after(loaded, news("operation", "o", 11, operation("o", "2026-01-01T00:00:00Z")));
    expect(runningOn(busy, "id-web")?.id).toBe("o");
  });

  it("shows a VM's NICs by their own records, which change more often than the VM", () => {
    const withNic = vm("web", { state: "running" }, { spec: { ...web.spec, ports: ["p"] } });
    const live = after(loaded, news("vm", web.id, 11, withNic), news("port", "p", 12, port("p", web.id)));
    expect(nicsOf(live, withNic).map((nic) => nic.status.leased_at)).toEqual([null]);
    const leased = after(live, news("port", "p", 13, port("p", web.id, "2026-01-01T00:00:00Z")));
    expect(nicsOf(leased, withNic).map((nic) => nic.status.leased_at)).toEqual(["2026-01-01T00:00:00Z"]);
  });

  it("forgets everything when signed out", () => {
    const out = reduce(loaded, { type: "signed-out" });
    expect(out.phase).toBe("signed-out");
    expect(vmsOf(out)).toEqual([]);
  });

  it("says how news arrives", () => {
    const polling = reduce(loaded, { type: "feed", feed: { by: "polling", why: "cut" } });
    expect(polling.feed).toEqual({ by: "polling", why: "cut" });
    expect(vmsOf(polling)).toEqual([web]);
  });
});
