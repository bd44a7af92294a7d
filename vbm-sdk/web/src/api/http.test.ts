import { afterEach, describe, expect, it, vi } from "vitest";
import { ApiError, asApiError, call, failure, fill, list } from "./http";

const json = (body: unknown, status = 200) =>
  new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json" } });

afterEach(() => vi.unstubAllGlobals());

describe("requests", () => {
  it("have their names and their query in the address, whatever stands in them", () => {
    expect(fill("/v1/nodes/{node}", { node: "eu/n1" })).toBe("/v1/nodes/eu%2Fn1");
    expect(fill("/v1/vms/{vm}", { vm: "<script>?#" }, { force: true, after: undefined })).toBe(
      "/v1/vms/%3Cscript%3E%3F%23?force=true",
    );
  });

  it("that change something bear a key of their own", async () => {
    const seen: RequestInit[] = [];
    vi.stubGlobal("fetch", (_url: string, init: RequestInit) => {
      seen.push(init);
      return Promise.resolve(json({}));
    });
    await call("post", "/v1/vms/{vm}/power", { path: { vm: "web" }, body: { action: "start" } });
    await call("post", "/v1/vms/{vm}/power", { path: { vm: "web" }, body: { action: "start" } });
    await call("get", "/v1/version");
    const keys = seen.map((init) => new Headers(init.headers).get("Idempotency-Key"));
    expect(keys[0]).toMatch(/^[0-9a-f-]{36}$/);
    expect(keys[1]).not.toBe(keys[0]);
    expect(keys[2]).toBeNull();
    expect(seen[0]?.body).toBe('{"action":"start"}');
  });

  it("for a list ask for part after part, and know the oldest revision", async () => {
    const asked: string[] = [];
    vi.stubGlobal("fetch", (url: string) => {
      asked.push(url);
      const more = asked.length === 1;
      return Promise.resolve(json({ items: [asked.length], next: more ? "a b" : null, revision: more ? 9 : 12 }));
    });
    expect(await list("/v1/vms")).toEqual({ items: [1, 2], revision: 9 });
    expect(asked).toEqual(["/v1/vms?limit=1000", "/v1/vms?limit=1000&after=a+b"]);
  });
});

describe("failures", () => {
  it("say what, why and what to do, as vbmd says it", async () => {
    const error = { kind: "conflict", what: "cannot pause web", why: "it is off", fix: "start it" };
    const seen = await failure(json({ type: "t", title: "t", status: 409, detail: "d", error }, 409));
    expect([seen.what, seen.why, seen.fix, seen.status]).toEqual(["cannot pause web", "it is off", "start it", 409]);
  });

  it("without problem JSON are told all the same", async () => {
    const seen = await failure(new Response("<html>", { status: 502, statusText: "Bad Gateway" }));
    expect(seen.why).toBe("It answered 502 Bad Gateway");
  });

  it("of the network say that vbmd does not answer", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("failed to fetch")));
    await expect(call("get", "/v1/version")).rejects.toMatchObject({ what: "vbmd does not answer", status: 0 });
  });

  it("of any other kind have the same form", () => {
    expect(asApiError("x")).toBeInstanceOf(ApiError);
    expect(asApiError(new Error("boom")).why).toBe("boom");
  });
});
