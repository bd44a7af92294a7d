// Rules of security groups as people write them: `[egress:]PROTOCOL[/PORTS][@PEER]`. Pure.

import type { Group, Rule } from "../api/types";

/** What is typed into the fields of a rule. */
export interface RuleDraft {
  direction: "ingress" | "egress";
  protocol: Rule["protocol"];
  /** Ports of tcp and udp, messages of ICMP. */
  ports: string;
  /** The other end: addresses, `self`, or `group:NAME`. */
  from: string;
}

export const PROTOCOLS: Rule["protocol"][] = ["tcp", "udp", "icmp", "icmpv6", "any"];

const ITSELF = "self";
const GROUP_PREFIX = "group:";

/** Whether a rule of this protocol may name ports. */
export function hasPorts(protocol: Rule["protocol"]): boolean {
  return protocol === "tcp" || protocol === "udp";
}

/** Whether a rule of this protocol may name messages. */
export function hasMessages(protocol: Rule["protocol"]): boolean {
  return protocol === "icmp" || protocol === "icmpv6";
}

/** The other end of a rule, as it is typed. Groups that are known are called by their names. */
export function endText(rule: Rule, groups: Group[] = []): string {
  if (rule.peer === ITSELF) return ITSELF;
  if (rule.peer) return GROUP_PREFIX + (groups.find((group) => group.id === rule.peer)?.name ?? rule.peer);
  return rule.from ?? "";
}

/** `egress:tcp/80@10.0.0.0/8`. */
export function ruleText(rule: Rule, groups: Group[] = []): string {
  const way = rule.direction === "egress" ? "egress:" : "";
  const what = rule.ports ?? rule.icmp;
  const end = endText(rule, groups);
  return `${way}${rule.protocol}${what ? `/${what}` : ""}${end ? `@${end}` : ""}`;
}

/** A rule as its fields show it. */
export function draftOf(rule: Rule, groups: Group[]): RuleDraft {
  return {
    direction: rule.direction ?? "ingress",
    protocol: rule.protocol,
    ports: rule.ports ?? rule.icmp ?? "",
    from: endText(rule, groups),
  };
}

/** The rule that the fields describe. What is wrong with it is the server's to say. */
export function ruleOf(draft: RuleDraft): Rule {
  const what = draft.ports.trim();
  const end = draft.from.trim();
  const peer = end === ITSELF ? ITSELF : end.startsWith(GROUP_PREFIX) ? end.slice(GROUP_PREFIX.length) : null;
  return {
    direction: draft.direction,
    protocol: draft.protocol,
    ports: hasPorts(draft.protocol) && what ? what : null,
    icmp: hasMessages(draft.protocol) && what ? what : null,
    from: peer === null && end ? end : null,
    peer,
  };
}

export function sameRule(a: Rule, b: Rule, groups: Group[] = []): boolean {
  return ruleText(a, groups) === ruleText(b, groups);
}
