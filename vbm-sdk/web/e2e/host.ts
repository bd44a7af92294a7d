// What the host shows of a VM's consoles: the sockets that its hypervisor holds. Each viewer of the desktop is one.

import { readdirSync, readlinkSync } from "node:fs";
import type { Stage } from "./stage";

export async function sockets(stage: Stage, vm: string): Promise<number> {
  const { status } = JSON.parse(await stage.vbm("info", vm, "-o", "json")) as { status: { pid: number } };
  const fds = `/proc/${status.pid}/fd`;
  return readdirSync(fds).filter((fd) => {
    try {
      return readlinkSync(`${fds}/${fd}`).startsWith("socket:");
    } catch {
      return false; // Closed since it was listed.
    }
  }).length;
}
