// The screen, keyboard and mouse of a VM: noVNC on a WebSocket of the API.

import RFB from "@novnc/novnc";
import { Button, Form, Popover, TextArea } from "@patternfly/react-core";
import ExpandIcon from "@patternfly/react-icons/dist/esm/icons/expand-icon";
import KeyboardIcon from "@patternfly/react-icons/dist/esm/icons/keyboard-icon";
import SyncIcon from "@patternfly/react-icons/dist/esm/icons/sync-alt-icon";
import { useMemo, useRef, useState } from "react";
import type { Vm } from "../../api/types";
import { KEYSYM_SHIFT, TYPED_MAX_CHARS, strokes } from "../../lib/keys";
import { ConsoleFrame } from "./ConsoleFrame";
import { type Show, useConsole } from "./useConsole";

const BACKGROUND = "#000";

export default function Desktop({ vm }: { vm: Vm }) {
  const rfb = useRef<RFB>(undefined);
  const show = useMemo<Show>(
    () => (socket, element, opened) => {
      // Several may look at the same screen.
      const made = new RFB(element, socket, { shared: true });
      made.scaleViewport = true;
      made.background = BACKGROUND;
      made.showDotCursor = true;
      made.addEventListener("connect", () => {
        opened();
        made.focus({ preventScroll: true });
      });
      rfb.current = made;
      return {
        end: () => {
          rfb.current = undefined;
          made.disconnect();
        },
      };
    },
    [],
  );
  const view = useConsole(vm.id, "vnc", show);
  const open = view.phase.state === "open";

  return (
    <ConsoleFrame
      view={view}
      label={`Screen of ${vm.name}`}
      className="vbm-desktop"
      tools={(fullScreen) => (
        <>
          <Button
            size="sm"
            variant="secondary"
            isDisabled={!open}
            onClick={() => {
              rfb.current?.sendCtrlAltDel();
              rfb.current?.focus();
            }}
          >
            Ctrl-Alt-Del
          </Button>
          <TypeText disabled={!open} onType={(text) => typeText(rfb.current, text)} />
          <Button size="sm" variant="secondary" icon={<ExpandIcon />} isDisabled={!open} onClick={fullScreen}>
            Full screen
          </Button>
          <Button size="sm" variant="secondary" icon={<SyncIcon />} onClick={view.reconnect}>
            Reconnect
          </Button>
        </>
      )}
    />
  );
}

function typeText(rfb: RFB | undefined, text: string) {
  for (const { keysym, code, shift } of strokes(text)) {
    if (shift) rfb?.sendKey(KEYSYM_SHIFT, "ShiftLeft", true);
    rfb?.sendKey(keysym, code);
    if (shift) rfb?.sendKey(KEYSYM_SHIFT, "ShiftLeft", false);
  }
  rfb?.focus();
}

/** A guest's screen has no clipboard: text is typed into it, key by key. */
function TypeText({ disabled, onType }: { disabled: boolean; onType: (text: string) => void }) {
  const [text, setText] = useState("");
  return (
    <Popover
      aria-label="Type text into the guest"
      headerContent="Type text into the guest"
      bodyContent={(hide) => (
        <Form>
          <TextArea
            aria-label="Text"
            value={text}
            rows={4}
            maxLength={TYPED_MAX_CHARS}
            onChange={(_, next) => setText(next)}
            resizeOrientation="vertical"
          />
          <Button
            size="sm"
            isDisabled={text === ""}
            onClick={() => {
              hide();
              onType(text);
              setText("");
            }}
          >
            Type it
          </Button>
        </Form>
      )}
    >
      <Button size="sm" variant="secondary" icon={<KeyboardIcon />} isDisabled={disabled}>
        Type text
      </Button>
    </Popover>
  );
}
