import { describe, expect, it } from "vitest";
import { pairText, parseCount, parsePairs, parseRate, rateText } from "./limits";

describe("limits", () => {
  it("are read as they are written", () => {
    for (const text of ["64kbit", "100mbit", "2gbit", "1500kbit"]) expect(rateText(parseRate(text))).toBe(text);
    expect(parseRate(" 100 ")).toBeUndefined();
    expect(parseRate("100 mbit")).toBeUndefined();
    expect([parseRate(""), parseRate("none"), parseCount("")]).toEqual([null, null, null]);
    expect([parseCount("500"), parseCount("-1"), parseCount("many")]).toEqual([500, undefined, undefined]);
  });

  it("of addresses lose nothing on their way through the field", () => {
    const pairs = parsePairs("10.0.0.200, fd00::5\n172.16.0.0/16 10.0.0.201=00:00:5e:00:01:01");
    expect(pairs.map((pair) => pair.address)).toEqual(["10.0.0.200/32", "fd00::5/128", "172.16.0.0/16", "10.0.0.201/32"]);
    expect(pairs.map(pairText)).toEqual([
      "10.0.0.200",
      "fd00::5",
      "172.16.0.0/16",
      "10.0.0.201=00:00:5e:00:01:01",
    ]);
  });
});
