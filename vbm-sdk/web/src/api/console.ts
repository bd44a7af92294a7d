// Connections to the consoles of VMs: a one-time token each, used at once.

import { call } from "./http";
import type { ConsoleKind } from "./types";

/** Asks for a token and opens a WebSocket with it. Binary both ways. */
export async function connect(vm: string, kind: ConsoleKind): Promise<WebSocket> {
  const token = await call("post", "/v1/vms/{vm}/console-tokens", { path: { vm }, body: { kind } });
  const url = new URL(token.url, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url, ["binary"]);
  socket.binaryType = "arraybuffer";
  return socket;
}

const CLOSE_NORMAL = 1000;
const CLOSE_GOING_AWAY = 1001;

/** Why a connection ended, for people. */
export function whyClosed(event: Pick<CloseEvent, "code" | "reason">): string {
  if (event.reason) return event.reason;
  if (event.code === CLOSE_NORMAL) return "it was closed";
  if (event.code === CLOSE_GOING_AWAY) return "vbmd ended";
  return "the connection broke";
}
