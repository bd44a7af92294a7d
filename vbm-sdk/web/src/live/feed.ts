// Brings news into the store: everything once, then each change as it happens.
//
//        +--> load all lists --> watch from their revision --(changes)--> store
//        |                          |  breaks, is silent, or was reset
//        +----- wait a little <-----+
//
// Where the watch cannot be opened the lists are read again and again instead, and the page says so.

import { ApiError, asApiError, fill, list, send } from "../api/http";
import type { Event, Node } from "../api/types";
import { SseParser, type Message } from "./sse";
import { EVENTS_KEPT, TABLES, type Action, type Change, type Tables } from "./store";

/** Between two looks while there is no watch. */
export const POLL_MS = 4_000;
/** A watch that says nothing for so long is dead: vbmd sends a sign of life much more often. */
const SILENCE_MS = 45_000;
const UNAUTHORISED = 401;

type Dispatch = (action: Action) => void;

/** Runs until it is aborted, or until the session is over. Never throws. */
export async function run(dispatch: Dispatch, wake: Wake, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    let why: string;
    let failure: string | undefined;
    try {
      const revision = await load(dispatch, signal);
      why = await watch(revision, dispatch, signal);
    } catch (error) {
      if (signal.aborted) return;
      const failed = asApiError(error);
      if (failed.status === UNAUTHORISED) {
        dispatch({ type: "signed-out" });
        return;
      }
      why = failure = `${failed.what}: ${failed.why}`;
    }
    if (signal.aborted) return;
    if (why !== RESET) {
      dispatch({ type: "feed", feed: { by: "polling", why }, failure });
      await wake.after(POLL_MS, signal);
    }
  }
}

/** The reason of a watch that ended because the server told it to begin anew: nothing is wrong. */
const RESET = "reset";

/** Something to wait for: a time, or somebody who wants the next look now. */
export class Wake {
  #now: (() => void) | undefined;

  /** The next look shall be now: something was just changed. Without effect while the watch works. */
  now(): void {
    this.#now?.();
  }

  async after(milliseconds: number, signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        this.#now = undefined;
        resolve();
      };
      const timer = setTimeout(end, milliseconds);
      signal.addEventListener("abort", end);
      this.#now = end;
    });
  }
}

async function load(dispatch: Dispatch, signal: AbortSignal): Promise<number> {
  const [vm, network, port, group, forward, floating, image, node, operation, events] = await Promise.all([
    list("/v1/vms", signal),
    list("/v1/networks", signal),
    list("/v1/ports", signal),
    list("/v1/groups", signal),
    list("/v1/forwards", signal),
    list("/v1/floating-ips", signal),
    list("/v1/images", signal),
    list("/v1/nodes", signal),
    list("/v1/operations", signal),
    recentEvents(signal),
  ]);
  const tables: Tables = {
    vm: byId(vm.items),
    network: byId(network.items),
    port: byId(port.items),
    group: byId(group.items),
    forward: byId(forward.items),
    "floating-ip": byId(floating.items),
    image: byId(image.items),
    node: Object.fromEntries(node.items.map((item: Node) => [item.path, item])),
    operation: byId(operation.items),
  };
  const parts = { vm, network, port, group, forward, "floating-ip": floating, image, node, operation };
  const revision = Math.min(...TABLES.map((table) => parts[table].revision));
  dispatch({ type: "loaded", tables, events, revision });
  return revision;
}

function byId<T extends { id: string }>(items: T[]): Record<string, T> {
  return Object.fromEntries(items.map((item) => [item.id, item]));
}

/** The newest events that are kept. */
async function recentEvents(signal: AbortSignal): Promise<Event[]> {
  const response = await send("get", "/v1/events", { signal });
  const lines = (await response.text()).split("\n").filter((text) => text.trim() !== "");
  return lines.slice(-EVENTS_KEPT).map((text) => JSON.parse(text) as Event);
}

/** Follows the watch until it ends; gives the reason. */
async function watch(from: number, dispatch: Dispatch, signal: AbortSignal): Promise<string> {
  // Each piece that arrives puts the end off.
  const silence = new AbortController();
  const ended = AbortSignal.any([signal, silence.signal]);
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    const response = await send("get", fill("/v1/watch", {}, { from }), {
      signal: ended,
      headers: { Accept: "text/event-stream" },
    });
    if (!response.body) throw new ApiError("vbmd sent nothing", "the watch has no body", "Reload the page.", 0);
    dispatch({ type: "feed", feed: { by: "watch" } });
    const parser = new SseParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return "vbmd ended the connection";
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const messages = parser.push(value);
      const changes = changesOf(messages);
      if (changes.length > 0) dispatch({ type: "changed", changes });
      if (messages.some((message) => message.event === "reset")) {
        await reader.cancel();
        return RESET;
      }
    }
  } catch (error) {
    if (silence.signal.aborted) return "vbmd fell silent";
    if (error instanceof ApiError) throw error;
    return "the connection to vbmd broke";
  } finally {
    clearTimeout(timer);
  }
}

/** The changes among messages; others are signs of life. */
export function changesOf(messages: Message[]): Change[] {
  return messages.filter((message) => message.event === "change").map((message) => JSON.parse(message.data) as Change);
}
