// The life of a console on the page: connecting, open, closed with its reason, and anew on request.

import { type RefObject, useCallback, useEffect, useRef, useState } from "react";
import { connect, whyClosed } from "../../api/console";
import { asApiError } from "../../api/http";
import type { ConsoleKind } from "../../api/types";

export type ConsolePhase =
  { state: "connecting" } | { state: "open" } | { state: "closed"; why: string; error?: unknown };

/** What shows a console in an element. `end` is called once, when the connection is over or the page leaves. */
export type Show = (socket: WebSocket, element: HTMLElement, opened: () => void) => { end: () => void };

export interface ConsoleView {
  phase: ConsolePhase;
  element: RefObject<HTMLDivElement | null>;
  reconnect: () => void;
}

/** Connects when the component appears and when asked to; closes when it goes. */
export function useConsole(vm: string, kind: ConsoleKind, show: Show): ConsoleView {
  const element = useRef<HTMLDivElement>(null);
  const [phase, setPhase] = useState<ConsolePhase>({ state: "connecting" });
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    let gone = false;
    let end = () => undefined as void;
    const begin = async () => {
      setPhase({ state: "connecting" });
      try {
        const socket = await connect(vm, kind);
        const place = element.current;
        if (gone || !place) {
          socket.close();
          return;
        }
        socket.addEventListener("close", (event) => {
          if (!gone) setPhase({ state: "closed", why: whyClosed(event) });
        });
        end = show(socket, place, () => !gone && setPhase({ state: "open" })).end;
      } catch (error) {
        const failed = asApiError(error);
        if (!gone) setPhase({ state: "closed", why: `${failed.what}: ${failed.why}`, error: failed });
      }
    };
    void begin();
    return () => {
      gone = true;
      end();
    };
  }, [vm, kind, show, attempt]);

  const reconnect = useCallback(() => setAttempt((before) => before + 1), []);
  return { phase, element, reconnect };
}
