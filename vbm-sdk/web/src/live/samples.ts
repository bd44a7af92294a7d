// Records for tests.

import type { Event, Operation, Port, PowerState, Vm } from "../api/types";

export const NEVER = "1970-01-01T00:00:00Z";

function meta(id: string, name: string) {
  return { id, name, generation: 1, created_at: NEVER, labels: {}, deleting: false };
}

export function vm(name: string, power: PowerState, more: Partial<Vm> = {}): Vm {
  return {
    ...meta(`id-${name}`, name),
    spec: {
      vcpus: 1,
      memory_mib: 256,
      image: "id-image",
      root_volume: "id-volume",
      ports: [],
      driver: "qemu",
      node: "n1",
      power: power.state === "off" ? "off" : "running",
    },
    status: { power, observed: 1, since: NEVER },
    image_name: "tiny",
    nics: [],
    ...more,
  };
}

export function port(id: string, vmId: string, leasedAt: string | null = null): Port {
  return {
    ...meta(id, id),
    spec: { network: "id-lan", vm: vmId, mac: "52:54:00:00:00:01", address: "10.0.0.2", groups: [], pinned: false },
    status: { leased_at: leasedAt },
    network_name: "lan",
    vm_name: "web",
    group_names: ["web"],
  };
}

export function operation(id: string, createdAt: string, more: Partial<Operation> = {}): Operation {
  return {
    id,
    verb: "start",
    target: { kind: "vm", id: "id-web", name: "web" },
    state: "running",
    steps: [],
    generation: 1,
    created_at: createdAt,
    ...more,
  };
}

export function event(revision: number, objectId = "id-web"): Event {
  return {
    id: `event-${revision}`,
    at: NEVER,
    kind: "VmStarted",
    message: "",
    object: { kind: "vm", id: objectId, name: "web" },
    revision,
  };
}
