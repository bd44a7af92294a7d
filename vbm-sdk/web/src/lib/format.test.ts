import { describe, expect, it } from "vitest";
import { age, bytes, mib, shortId, span, took, words } from "./format";

describe("values for people", () => {
  it("shows sizes in the unit that fits", () => {
    expect([mib(256), mib(1024), mib(1536)]).toEqual(["256 MiB", "1 GiB", "1.5 GiB"]);
    expect([bytes(0), bytes(1023), bytes(1024), bytes(17_825_792), bytes(2 ** 50)]).toEqual([
      "0 B",
      "1023 B",
      "1 KiB",
      "17 MiB",
      "1024 TiB",
    ]);
  });

  it("shows spans in their largest unit, and never negative ones", () => {
    expect([span(-5), span(59_999), span(60_000), span(7_200_000), span(172_800_000)]).toEqual([
      "0 s",
      "59 s",
      "1 min",
      "2 h",
      "2 d",
    ]);
    expect([took(0), took(0.2), took(41.4), took(412), took(125_000)]).toEqual(["0.0 s", "1 ms", "41 ms", "0.4 s", "2 min 5 s"]);
  });

  it("shows no age of a time that was never written", () => {
    expect(age("1970-01-01T00:00:00Z", 1000)).toBe("");
    expect(age(undefined, 1000)).toBe("");
    expect(age("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:03:00Z"))).toBe("3 min");
  });

  it("shows names of events as words", () => {
    expect([words("VmStarted"), words("PortLeased"), words("NodeLost")]).toEqual([
      "VM started",
      "Port leased",
      "Node lost",
    ]);
  });

  it("shortens an id to its end, where ids made at the same time differ", () => {
    expect(shortId("0198a1b2-0000-7000-8000-0123456789ab")).toBe("456789ab");
  });
});
