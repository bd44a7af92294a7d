// What a VM's power state looks like and what may be asked of it. Pure; mirrors `plan_power` of
// vbm-sdk/src/controller/vms.rs, which has the last word.

import type { PowerAction, Vm } from "../api/types";

export type Verb = PowerAction | "delete";
export type Tone = "good" | "bad" | "warn" | "busy" | "idle";

/** What a verb is called on a button. */
export const VERB_LABEL: Record<Verb, string> = {
  start: "Start",
  stop: "Shut down",
  "force-off": "Force off",
  restart: "Reset",
  pause: "Pause",
  resume: "Resume",
  save: "Save to disk",
  discard: "Discard saved memory",
  delete: "Delete",
};

/** Verbs that lose what the guest has not written. They are asked twice. */
export const DANGEROUS: readonly Verb[] = ["force-off", "restart", "discard", "delete"];

function state(vm: Vm): string {
  return vm.status.power?.state ?? "unknown";
}

/** The power state in words, with its reason. */
export function powerText(vm: Vm): string {
  const power = vm.status.power;
  if (vm.deleting) return "deleting";
  if (!power) return "unknown";
  if (power.state === "paused" && power.why === "disk-error") return "paused (disk error)";
  if (power.state === "paused" && power.why === "hypervisor") return "paused (by hypervisor)";
  if (power.state === "crashed") return `crashed (${power.why})`;
  return power.state.replace("-", " ");
}

/** The colour of a power state. */
export function powerTone(vm: Vm): Tone {
  if (vm.deleting) return "busy";
  switch (state(vm)) {
    case "running":
      return "good";
    case "crashed":
    case "unresponsive":
      return "bad";
    case "paused":
    case "unknown":
      return "warn";
    case "off":
    case "saved":
      return "idle";
    default:
      return "busy";
  }
}

/** Whether the hypervisor shows a screen and takes keys. */
export function hasConsole(vm: Vm): boolean {
  return ["running", "paused", "stopping", "unresponsive"].includes(state(vm)) && !vm.deleting;
}

/** Why a verb makes no sense now; `undefined` when it does. */
export function refusal(verb: Verb, vm: Vm): string | undefined {
  if (vm.deleting) return "It is being deleted.";
  const now = state(vm);
  const is = `It is ${powerText(vm)}`;
  const one = (...states: string[]) => (states.includes(now) ? undefined : is);
  switch (verb) {
    case "start":
      if (now === "paused") return `${is}: let it go on with Resume.`;
      return one("off", "crashed", "saved", "unknown") && `${is}.`;
    case "stop":
      if (now === "paused") return `${is}: resume it first, or force it off.`;
      return one("running", "starting", "stopping", "unresponsive", "unknown") && `${is}.`;
    case "force-off":
      return now === "off" || now === "saved" ? `${is}.` : undefined;
    case "restart":
    case "pause":
      return one("running") && `${is}; only a running VM can be ${verb === "pause" ? "paused" : "reset"}.`;
    case "resume":
      return one("paused") && `${is}; only a paused VM can be resumed.`;
    case "save":
      return one("running", "paused") && `${is}; only a VM that runs or is paused has memory to be saved.`;
    case "discard":
      return one("saved") && `${is}; only a saved VM has memory on disk.`;
    case "delete":
      return undefined;
  }
}

/** Whether deleting has to end it first. */
export function deleteNeedsForce(vm: Vm): boolean {
  const stays = !vm.spec.node || vm.spec.power === "off" || vm.spec.power === "forced-off";
  return !(state(vm) === "off" && stays);
}
