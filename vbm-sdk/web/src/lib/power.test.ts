import { describe, expect, it } from "vitest";
import { vm } from "../live/samples";
import { VERB_LABEL, deleteNeedsForce, hasConsole, powerText, powerTone, refusal, type Verb } from "./power";

const VERBS = Object.keys(VERB_LABEL) as Verb[];
const allowed = (power: Parameters<typeof vm>[1]) => VERBS.filter((verb) => !refusal(verb, vm("web", power)));

describe("what may be asked of a VM", () => {
  it("follows its power state", () => {
    expect(allowed({ state: "off" })).toEqual(["start", "delete"]);
    expect(allowed({ state: "running" })).toEqual(["stop", "force-off", "restart", "pause", "save", "delete"]);
    expect(allowed({ state: "paused", why: "requested" })).toEqual(["force-off", "resume", "save", "delete"]);
    expect(allowed({ state: "saved" })).toEqual(["start", "discard", "delete"]);
    expect(allowed({ state: "crashed", why: "guest" })).toEqual(["start", "force-off", "delete"]);
  });

  it("is nothing once it is being deleted", () => {
    const going = { ...vm("web", { state: "running" }), deleting: true };
    expect(VERBS.filter((verb) => !refusal(verb, going))).toEqual([]);
    expect(powerText(going)).toBe("deleting");
    expect(hasConsole(going)).toBe(false);
  });

  it("says why not, with the state", () => {
    expect(refusal("pause", vm("web", { state: "off" }))).toContain("It is off");
    expect(refusal("stop", vm("web", { state: "paused", why: "requested" }))).toContain("resume it first");
  });
});

describe("how a power state looks", () => {
  it("has its reason", () => {
    expect(powerText(vm("web", { state: "paused", why: "disk-error" }))).toBe("paused (disk error)");
    expect(powerText(vm("web", { state: "crashed", why: "guest" }))).toBe("crashed (guest)");
    expect(powerText(vm("web", { state: "migrating-out" }))).toBe("migrating out");
    expect(powerTone(vm("web", { state: "crashed", why: "guest" }))).toBe("bad");
    expect(powerTone(vm("web", { state: "running" }))).toBe("good");
  });

  it("says whether deleting ends something", () => {
    expect(deleteNeedsForce(vm("web", { state: "off" }))).toBe(false);
    expect(deleteNeedsForce(vm("web", { state: "running" }))).toBe(true);
  });
});
