// Rules of security groups as people write them: `PROTOCOL[/PORTS][@CIDR]`. Pure.

import type { Rule } from "../api/types";

/** What is typed into the fields of a rule. */
export interface RuleDraft {
  protocol: Rule["protocol"];
  ports: string;
  from: string;
}

export const PROTOCOLS: Rule["protocol"][] = ["tcp", "udp", "icmp", "any"];

/** Whether a rule of this protocol may name ports. */
export function hasPorts(protocol: Rule["protocol"]): boolean {
  return protocol === "tcp" || protocol === "udp";
}

/** `tcp/80@10.0.0.0/8`. */
export function ruleText(rule: Rule): string {
  const ports = rule.ports ? `/${rule.ports}` : "";
  const from = rule.from ? `@${rule.from}` : "";
  return `${rule.protocol}${ports}${from}`;
}

/** The rule that the fields describe. What is wrong with it is the server's to say. */
export function ruleOf(draft: RuleDraft): Rule {
  const ports = draft.ports.trim();
  const from = draft.from.trim();
  return {
    direction: "ingress",
    protocol: draft.protocol,
    ports: hasPorts(draft.protocol) && ports ? ports : null,
    from: from || null,
  };
}

export function sameRule(a: Rule, b: Rule): boolean {
  return ruleText(a) === ruleText(b);
}
