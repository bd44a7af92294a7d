import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { POLL_MS, Wake, run } from "./feed";
import { event, vm } from "./samples";
import { BEGINNING, reduce, vmsOf, type Live } from "./store";

/** A vbmd of one VM, whose watch is what the test says. */
class Daemon {
  lists = 0;
  watches: string[] = [];
  power: "running" | "off" = "running";
  watch: () => Response | Promise<Response> = () => new Response("no", { status: 503 });
  refuse: number | undefined;

  readonly fetch = (url: string, init: RequestInit): Promise<Response> => {
    if (this.refuse) return Promise.resolve(new Response("{}", { status: this.refuse }));
    if (url.startsWith("/v1/watch")) {
      this.watches.push(url);
      return Promise.resolve(this.watch()).then((response) => abortable(response, init.signal));
    }
    if (url === "/v1/events") return Promise.resolve(new Response(`${JSON.stringify(event(3))}\n\n`));
    const items = url.startsWith("/v1/vms") ? [vm("web", { state: this.power })] : [];
    if (items.length > 0) this.lists += 1;
    return Promise.resolve(new Response(JSON.stringify({ items, revision: 41 + this.lists })));
  };
}

/** A response whose body ends with an error when the request is aborted, as a browser's does. */
function abortable(response: Response, signal: AbortSignal | null | undefined): Response {
  const reader = response.body?.getReader();
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => signal?.addEventListener("abort", () => controller.error(new Error("aborted"))),
    pull: async (controller) => {
      const piece = await reader?.read();
      if (!piece || piece.done) controller.close();
      else controller.enqueue(piece.value);
    },
  });
  return new Response(body, { status: response.status });
}

/** A watch that says these messages and then stays open. */
function open(...messages: string[]): Response {
  const stream = new ReadableStream<Uint8Array>({
    start: (controller) => messages.forEach((text) => controller.enqueue(new TextEncoder().encode(text))),
  });
  return new Response(stream);
}

const changed = (state: "off" | "running") =>
  `event: change\ndata: ${JSON.stringify({ kind: "vm", id: "id-web", revision: 50, deleted: false, view: vm("web", { state }) })}\n\n`;

let daemon: Daemon;
let live: Live;
let stop: AbortController;
let wake: Wake;
let done: Promise<void>;

beforeEach(() => {
  vi.useFakeTimers();
  daemon = new Daemon();
  live = BEGINNING;
  stop = new AbortController();
  wake = new Wake();
  vi.stubGlobal("fetch", daemon.fetch);
});
afterEach(async () => {
  stop.abort();
  await vi.runAllTimersAsync();
  await done;
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

function begin() {
  done = run((action) => (live = reduce(live, action)), wake, stop.signal);
}
const settle = (milliseconds = 0) => vi.advanceTimersByTimeAsync(milliseconds);
const power = () => vmsOf(live).map((v) => v.status.power?.state);

describe("news", () => {
  it("comes by the watch, from the revision of the lists", async () => {
    daemon.watch = () => open(": alive\n\n", changed("off"));
    begin();
    await settle(10);
    expect(daemon.watches).toEqual(["/v1/watch?from=42"]);
    expect(live.feed).toEqual({ by: "watch" });
    expect(power()).toEqual(["off"]);
    expect(live.events.map((e) => e.revision)).toEqual([3]);
  });

  it("comes by looking again when there is no watch, and says why", async () => {
    begin();
    await settle(10);
    expect(live.feed.by).toBe("polling");
    daemon.power = "off";
    await settle(POLL_MS + 10);
    expect(power()).toEqual(["off"]);
  });

  it("comes at once to somebody who just changed something, also without a watch", async () => {
    begin();
    await settle(10);
    daemon.power = "off";
    wake.now();
    await settle(10);
    expect(power()).toEqual(["off"]);
  });

  it("comes by the watch again when that is back", async () => {
    begin();
    await settle(10);
    daemon.watch = () => open();
    await settle(POLL_MS + 10);
    expect(live.feed).toEqual({ by: "watch" });
  });

  it("begins anew, without delay, when the log of changes was cut", async () => {
    daemon.watch = () => (daemon.watches.length === 1 ? open("event: reset\ndata: {}\n\n") : open());
    begin();
    await settle(10);
    expect(daemon.lists).toBe(2);
    expect(live.feed).toEqual({ by: "watch" });
  });

  it("of a connection that fell silent is not waited for for ever", async () => {
    daemon.watch = () => open();
    begin();
    await settle(45_010);
    expect(live.feed).toEqual({ by: "polling", why: "vbmd fell silent" });
  });

  it("ends when the session is over", async () => {
    daemon.refuse = 401;
    begin();
    await settle(10);
    expect(live.phase).toBe("signed-out");
    await done;
  });

  it("says why nothing can be read at all", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("refused")));
    begin();
    await settle(10);
    expect(live.phase).toBe("loading");
    expect(live.failure).toContain("vbmd does not answer");
  });
});
