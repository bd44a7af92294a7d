import { ClipboardCopyButton, CodeBlock, CodeBlockAction, CodeBlockCode } from "@patternfly/react-core";
import { useEffect, useId, useState } from "react";

const SAID_MS = 2_000;

/** Shows what is done here as `vbm` commands, to be copied. */
export function CliBox({ command, label = "The same as a command" }: { command: string; label?: string }) {
  const id = useId();
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), SAID_MS);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = () => void navigator.clipboard.writeText(command).then(() => setCopied(true));
  const actions = (
    <CodeBlockAction>
      <ClipboardCopyButton
        id={`${id}-copy`}
        textId={`${id}-text`}
        aria-label="Copy the command"
        variant="plain"
        onClick={copy}
        exitDelay={copied ? SAID_MS : 0}
      >
        {copied ? "Copied" : "Copy"}
      </ClipboardCopyButton>
    </CodeBlockAction>
  );
  return (
    <section className="vbm-cli" aria-label={label}>
      <CodeBlock actions={actions}>
        <CodeBlockCode id={`${id}-text`} data-testid="cli">
          {command}
        </CodeBlockCode>
      </CodeBlock>
    </section>
  );
}
