// The serial console of a VM: xterm.js on a WebSocket of the API.

import "@xterm/xterm/css/xterm.css";
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { Button } from "@patternfly/react-core";
import ExpandIcon from "@patternfly/react-icons/dist/esm/icons/expand-icon";
import SyncIcon from "@patternfly/react-icons/dist/esm/icons/sync-alt-icon";
import { useMemo, useRef } from "react";
import type { Vm } from "../../api/types";
import * as cli from "../../cli/commands";
import { CliBox } from "../../components/CliBox";
import { ConsoleFrame } from "./ConsoleFrame";
import { type Show, useConsole } from "./useConsole";

/** Lines that can be scrolled back to. */
const SCROLLBACK_LINES = 10_000;
const FONT_SIZE_PX = 14;
/** A console begins with what was said before; that is over once the line says nothing for so long. */
const REPLAY_QUIET_MS = 300;

export default function Serial({ vm }: { vm: Vm }) {
  const terminal = useRef<Terminal>(undefined);
  const socketNow = useRef<WebSocket>(undefined);
  const show = useMemo<Show>(
    () => (socket, element, opened) => {
      const made = new Terminal({
        scrollback: SCROLLBACK_LINES,
        fontSize: FONT_SIZE_PX,
        fontFamily: "'Red Hat Mono', 'RedHatMono', monospace",
        cursorBlink: true,
        theme: { background: "#000000" },
      });
      const fit = new FitAddon();
      made.loadAddon(fit);
      element.replaceChildren();
      made.open(element);
      fit.fit();
      const resized = new ResizeObserver(() => fit.fit());
      resized.observe(element);

      const encoder = new TextEncoder();
      const send = (data: string | Uint8Array<ArrayBuffer>) => {
        if (socket.readyState === WebSocket.OPEN) socket.send(typeof data === "string" ? encoder.encode(data) : data);
      };
      made.onData(send);
      // Reports of the mouse, byte by byte.
      made.onBinary((data) => send(Uint8Array.from(data, (char) => char.charCodeAt(0))));
      const replay = swallowReports(made);
      socket.addEventListener("message", (event: MessageEvent<ArrayBuffer>) => {
        replay.goesOn();
        made.write(new Uint8Array(event.data));
      });
      socket.addEventListener("open", () => {
        replay.goesOn();
        opened();
        made.focus();
      });
      terminal.current = made;
      socketNow.current = socket;
      return {
        end: () => {
          terminal.current = undefined;
          socketNow.current = undefined;
          replay.dispose();
          resized.disconnect();
          socket.close();
          made.dispose();
        },
      };
    },
    [],
  );
  const view = useConsole(vm.id, "serial", show);
  const open = view.phase.state === "open";

  /** A serial line does not tell the guest how large the terminal is; `stty` in its shell does. */
  const tellSize = () => {
    const made = terminal.current;
    if (!made) return;
    socketNow.current?.send(new TextEncoder().encode(`stty rows ${made.rows} cols ${made.cols}\r`));
    made.focus();
  };

  return (
    <>
      <ConsoleFrame
        view={view}
        label={`Serial console of ${vm.name}`}
        className="vbm-serial"
        tools={(fullScreen) => (
          <>
            <Button
              size="sm"
              variant="secondary"
              isDisabled={!open}
              onClick={tellSize}
              title="Types `stty rows ... cols ...` into the guest's shell"
            >
              Tell the guest the size
            </Button>
            <Button size="sm" variant="secondary" onClick={() => terminal.current?.clear()} isDisabled={!open}>
              Clear
            </Button>
            <Button size="sm" variant="secondary" icon={<ExpandIcon />} isDisabled={!open} onClick={fullScreen}>
              Full screen
            </Button>
            <Button size="sm" variant="secondary" icon={<SyncIcon />} onClick={view.reconnect}>
              Reconnect
            </Button>
          </>
        )}
      />
      <CliBox command={cli.serial(vm.name)} />
    </>
  );
}

/**
 * While the past is replayed, its questions to the terminal (cursor position, attributes) go unanswered: the guest
 * asked them long ago, and would take the answers for something typed.
 */
function swallowReports(terminal: Terminal) {
  let replaying = true;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const swallow = () => replaying;
  const handlers = [
    terminal.parser.registerCsiHandler({ final: "n" }, swallow),
    terminal.parser.registerCsiHandler({ prefix: "?", final: "n" }, swallow),
    terminal.parser.registerCsiHandler({ final: "c" }, swallow),
    terminal.parser.registerCsiHandler({ prefix: ">", final: "c" }, swallow),
  ];
  return {
    goesOn: () => {
      clearTimeout(timer);
      timer = setTimeout(() => (replaying = false), REPLAY_QUIET_MS);
    },
    dispose: () => {
      clearTimeout(timer);
      for (const handler of handlers) handler.dispose();
    },
  };
}
