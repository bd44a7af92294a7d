import { Alert, AlertActionLink, Flex, Spinner } from "@patternfly/react-core";
import { type ReactNode, useRef } from "react";
import { ErrorNote, sentence } from "../../components/ErrorNote";
import type { ConsoleView } from "./useConsole";

interface Props {
  view: ConsoleView;
  /** What the surface shows, for those who do not see it. */
  label: string;
  className: string;
  tools: (fullScreen: () => void) => ReactNode;
}

/** A console with its tools above it, and why it ended where it did. */
export function ConsoleFrame({ view, label, className, tools }: Props) {
  const frame = useRef<HTMLDivElement>(null);
  const { phase } = view;
  return (
    <div className="vbm-console">
      <Flex
        className="vbm-console-tools"
        columnGap={{ default: "columnGapSm" }}
        alignItems={{ default: "alignItemsCenter" }}
      >
        {tools(() => void frame.current?.requestFullscreen())}
        <span className="vbm-faint" role="status" data-testid="console-state">
          {phase.state === "connecting" && (
            <>
              <Spinner size="sm" aria-hidden /> connecting
            </>
          )}
          {phase.state === "open" && "connected"}
          {phase.state === "closed" && "closed"}
        </span>
      </Flex>
      {phase.state === "closed" &&
        (phase.error ? (
          <ErrorNote error={phase.error} />
        ) : (
          <Alert
            isInline
            variant="info"
            title="The connection ended"
            data-testid="console-closed"
            actionLinks={<AlertActionLink onClick={view.reconnect}>Reconnect</AlertActionLink>}
          >
            {sentence(phase.why)}.
          </Alert>
        ))}
      <div ref={frame} className="vbm-console-frame">
        <div ref={view.element} className={className} role="application" aria-label={label} />
      </div>
    </div>
  );
}
