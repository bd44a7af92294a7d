// What the page knows of the platform: one value, changed by one pure function.
//
//   lists (all tables at a revision) --loaded-->  Live  <--changed-- watch (one change of a record a message)
//                                                  ^
//                           feed, merged, signed-out
//
// What the watch says wins: an answer to a request only adds what the watch has not brought yet.

import type { Event, FloatingIp, Forward, Group, Image, Network, Node, Operation, Port, Vm } from "../api/types";

/** How many events are kept, the newest first. */
export const EVENTS_KEPT = 500;
/** How many operations are kept, the newest first. */
export const OPERATIONS_KEPT = 500;

export interface Tables {
  vm: Record<string, Vm>;
  network: Record<string, Network>;
  port: Record<string, Port>;
  group: Record<string, Group>;
  forward: Record<string, Forward>;
  "floating-ip": Record<string, FloatingIp>;
  image: Record<string, Image>;
  node: Record<string, Node>;
  operation: Record<string, Operation>;
}
export type TableName = keyof Tables;
export const TABLES: TableName[] = [
  "vm",
  "network",
  "port",
  "group",
  "forward",
  "floating-ip",
  "image",
  "node",
  "operation",
];

/** How news arrives: by the watch, by asking again and again, or not yet. */
export type Feed = { by: "nothing" } | { by: "watch" } | { by: "polling"; why: string };

export interface Live {
  phase: "loading" | "ready" | "signed-out";
  feed: Feed;
  /** Why nothing could be read at all, if so. */
  failure?: string;
  revision: number;
  tables: Tables;
  events: Event[];
}

/** One change of a record. `view` is absent when it was deleted, or when nothing is left to show of it. */
export interface Change {
  kind: string;
  id: string;
  revision: number;
  deleted: boolean;
  view?: unknown;
}

export type Action =
  | { type: "loaded"; tables: Tables; events: Event[]; revision: number }
  | { type: "changed"; changes: Change[] }
  | { type: "merged"; table: "vm"; record: Vm }
  | { type: "merged"; table: "network"; record: Network }
  | { type: "merged"; table: "operation"; record: Operation }
  | { type: "feed"; feed: Feed; failure?: string }
  | { type: "signed-out" };

export const NO_TABLES: Tables = {
  vm: {},
  network: {},
  port: {},
  group: {},
  forward: {},
  "floating-ip": {},
  image: {},
  node: {},
  operation: {},
};

export const BEGINNING: Live = {
  phase: "loading",
  feed: { by: "nothing" },
  revision: 0,
  tables: NO_TABLES,
  events: [],
};

/** The state after an action. */
export function reduce(live: Live, action: Action): Live {
  switch (action.type) {
    case "loaded":
      return {
        ...live,
        phase: "ready",
        failure: undefined,
        revision: action.revision,
        tables: { ...action.tables, operation: newest(action.tables.operation) },
        events: newestEvents(action.events),
      };
    case "changed":
      return action.changes.reduce(change, live);
    case "merged": {
      const table: Record<string, unknown> = live.tables[action.table];
      if (action.record.id in table) return live;
      return put(live, action.table, action.record.id, action.record);
    }
    case "feed":
      return { ...live, feed: action.feed, failure: action.failure };
    case "signed-out":
      return { ...BEGINNING, phase: "signed-out" };
  }
}

function change(live: Live, news: Change): Live {
  const at = { ...live, revision: Math.max(live.revision, news.revision) };
  if (news.kind === "event") {
    if (news.view === undefined) return at;
    return { ...at, events: newestEvents([...live.events, { ...(news.view as Event), revision: news.revision }]) };
  }
  const name = TABLES.find((table) => table === news.kind);
  // A kind that this page does not know: a newer daemon has more to tell.
  if (name === undefined) return at;
  if (news.deleted) {
    const { [news.id]: _gone, ...left } = at.tables[name] as Record<string, unknown>;
    return { ...at, tables: { ...at.tables, [name]: left } };
  }
  // Deleted since: its own message follows.
  if (news.view === undefined) return at;
  return put(at, name, news.id, news.view);
}

function put(live: Live, table: TableName, id: string, record: unknown): Live {
  const next = { ...live.tables, [table]: { ...live.tables[table], [id]: record } } as Tables;
  if (table === "operation") next.operation = newest(next.operation);
  return { ...live, tables: next };
}

function newest(operations: Record<string, Operation>): Record<string, Operation> {
  const all = Object.values(operations);
  if (all.length <= OPERATIONS_KEPT) return operations;
  const kept = all.sort((a, b) => b.created_at.localeCompare(a.created_at)).slice(0, OPERATIONS_KEPT);
  return Object.fromEntries(kept.map((operation) => [operation.id, operation]));
}

function newestEvents(events: Event[]): Event[] {
  const byId = new Map(events.map((event) => [event.id, event]));
  return [...byId.values()].sort((a, b) => b.revision - a.revision).slice(0, EVENTS_KEPT);
}

// What pages ask of it.

function named<T extends { name: string }>(table: Record<string, T>): T[] {
  return Object.values(table).sort((a, b) => a.name.localeCompare(b.name));
}

export const vmsOf = (live: Live): Vm[] => named(live.tables.vm);
export const networksOf = (live: Live): Network[] => named(live.tables.network);
export const groupsOf = (live: Live): Group[] => named(live.tables.group);
export const imagesOf = (live: Live): Image[] => named(live.tables.image);
export const forwardsOf = (live: Live): Forward[] => named(live.tables.forward);
export const floatingIpsOf = (live: Live): FloatingIp[] => named(live.tables["floating-ip"]);
export const portsOf = (live: Live): Port[] => named(live.tables.port);
export const nodesOf = (live: Live): Node[] =>
  Object.values(live.tables.node).sort((a, b) => a.path.localeCompare(b.path));

/** Newest first. */
export const operationsOf = (live: Live): Operation[] =>
  Object.values(live.tables.operation).sort((a, b) => b.created_at.localeCompare(a.created_at));

/** By its name, or by its id. */
export function find<T extends { id: string; name: string }>(table: Record<string, T>, key: string): T | undefined {
  return table[key] ?? Object.values(table).find((record) => record.name === key);
}

/** The ports of a VM in the order of its NICs: fresher than those that its own view was made with. */
export function nicsOf(live: Live, vm: Vm): Port[] {
  return vm.spec.ports.flatMap((id) => live.tables.port[id] ?? []);
}

/** What goes on with an object now, if something does. */
export function runningOn(live: Live, id: string): Operation | undefined {
  return operationsOf(live).find((operation) => operation.target.id === id && operation.state === "running");
}

/** What happened to an object, or to one of those that belong to it. */
export function eventsOf(live: Live, ...ids: string[]): Event[] {
  return live.events.filter((event) => ids.includes(event.object.id));
}
