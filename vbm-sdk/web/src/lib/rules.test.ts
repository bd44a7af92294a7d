import { describe, expect, it } from "vitest";
import type { Group, Rule } from "../api/types";
import { draftOf, ruleOf, ruleText, sameRule } from "./rules";

const groups = [{ id: "id-web", name: "web" }] as Group[];
const rule = (part: Partial<Rule>): Rule => ({ direction: "ingress", protocol: "tcp", ...part });

describe("rules", () => {
  it("are written as the command line reads them", () => {
    expect(ruleText(rule({ ports: "80" }))).toBe("tcp/80");
    expect(ruleText(rule({ protocol: "any", peer: "self" }))).toBe("any@self");
    expect(ruleText(rule({ ports: "5432", peer: "id-web" }), groups)).toBe("tcp/5432@group:web");
    expect(ruleText(rule({ protocol: "icmp", icmp: "type=8" }))).toBe("icmp/type=8");
    expect(ruleText(rule({ direction: "egress", ports: "443", from: "fd00::/8" }))).toBe("egress:tcp/443@fd00::/8");
  });

  it("lose nothing on their way through the fields", () => {
    for (const one of [
      rule({ ports: "80" }),
      rule({ protocol: "any", peer: "self" }),
      rule({ ports: "5432", peer: "id-web" }),
      rule({ protocol: "icmpv6", icmp: "type=1,code=4", from: "2001:db8::/32" }),
      rule({ direction: "egress", protocol: "udp", ports: "53", from: "10.0.0.0/8" }),
    ]) {
      const back = ruleOf(draftOf(one, groups));
      expect(sameRule(one, back, groups)).toBe(true);
      // What would open more than before is never sent.
      expect(Boolean(back.peer ?? back.from)).toBe(Boolean(one.peer ?? one.from));
      expect(back.direction).toBe(one.direction);
    }
  });
});
