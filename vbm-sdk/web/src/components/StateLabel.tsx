import { Label, Spinner } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import PowerOffIcon from "@patternfly/react-icons/dist/esm/icons/power-off-icon";
import type { ReactNode } from "react";
import type { Node, Operation, Vm } from "../api/types";
import { type Tone, powerText, powerTone } from "../lib/power";

const LOOK: Record<Tone, { color: "green" | "red" | "orange" | "blue" | "grey"; icon: ReactNode }> = {
  good: { color: "green", icon: <CheckCircleIcon /> },
  bad: { color: "red", icon: <ExclamationCircleIcon /> },
  warn: { color: "orange", icon: <ExclamationTriangleIcon /> },
  busy: { color: "blue", icon: <Spinner size="sm" aria-hidden /> },
  idle: { color: "grey", icon: <PowerOffIcon /> },
};

export function ToneLabel({ tone, text, testId }: { tone: Tone; text: string; testId?: string }) {
  return (
    <Label isCompact color={LOOK[tone].color} icon={LOOK[tone].icon} data-testid={testId}>
      {text}
    </Label>
  );
}

export function PowerLabel({ vm }: { vm: Vm }) {
  return <ToneLabel tone={powerTone(vm)} text={powerText(vm)} testId="power" />;
}

const NODE_TONE: Record<string, Tone> = { ready: "good", lost: "bad", refused: "bad", unknown: "warn" };

export function NodeLabel({ node }: { node: Node }) {
  const { state } = node.status;
  return <ToneLabel tone={NODE_TONE[state] ?? "warn"} text={state} />;
}

const OPERATION_TONE: Record<Operation["state"], Tone> = { running: "busy", done: "good", failed: "bad" };

export function OperationLabel({ operation }: { operation: Operation }) {
  return <ToneLabel tone={OPERATION_TONE[operation.state]} text={operation.state} />;
}
