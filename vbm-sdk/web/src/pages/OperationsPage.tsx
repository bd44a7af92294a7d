import { PageSection, Spinner } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import TasksIcon from "@patternfly/react-icons/dist/esm/icons/tasks-icon";
import type { Operation } from "../api/types";
import * as cli from "../cli/commands";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { Empty } from "../components/Empty";
import { ErrorBody, sentence } from "../components/ErrorNote";
import { ObjectLink } from "../components/ObjectLink";
import { PageHeader } from "../components/PageHeader";
import { OperationLabel } from "../components/StateLabel";
import { Clock, useNow } from "../components/time";
import { took } from "../lib/format";
import { useLive } from "../live/context";
import { operationsOf } from "../live/store";

const TICK_MS = 1_000;

export function OperationsPage() {
  const operations = operationsOf(useLive());
  const columns: Column<Operation>[] = [
    { title: "Asked for", by: (o) => o.created_at, cell: (o) => <Clock at={o.created_at} /> },
    { title: "What", by: (o) => o.verb, cell: (o) => o.verb },
    { title: "Object", by: (o) => o.target.name, cell: (o) => <ObjectLink object={o.target} /> },
    { title: "State", by: (o) => o.state, cell: (o) => <OperationLabel operation={o} /> },
    { title: "Took", cell: (o) => <Took operation={o} /> },
    { title: "Steps", cell: (o) => <Steps operation={o} /> },
  ];
  return (
    <>
      <PageHeader title="Operations" about="What takes time, the newest first: its steps, and how it ended." />
      <PageSection isFilled>
        <DataTable
          label="Operations"
          rows={operations}
          columns={columns}
          rowKey={(o) => o.id}
          text={(o) => `${o.verb} ${o.target.kind} ${o.target.name} ${o.state}`}
          empty={
            <Empty title="No operations yet" icon={TasksIcon}>
              Starting, stopping and all else that takes time is shown here while it goes on, and after.
            </Empty>
          }
        />
        <CliBox command={cli.operations()} />
      </PageSection>
    </>
  );
}

function Took({ operation }: { operation: Operation }) {
  const now = useNow(TICK_MS);
  const end = operation.ended_at ? Date.parse(operation.ended_at) : now;
  return <span className="vbm-nowrap">{took(end - Date.parse(operation.created_at))}</span>;
}

const LOOK = {
  running: <Spinner size="sm" aria-label="under way" />,
  done: <CheckCircleIcon className="vbm-good" aria-label="done" />,
  failed: <ExclamationCircleIcon className="vbm-bad" aria-label="failed" />,
};

/** The steps of an operation, and why it failed if it did. */
export function Steps({ operation }: { operation: Operation }) {
  const steps = operation.steps ?? [];
  return (
    <>
      {steps.length > 0 && (
        <ol className="vbm-steps" aria-label="Steps">
          {steps.map((step, at) => (
            <li key={at} title={`${step.state}, ${new Date(step.at).toLocaleTimeString()}`}>
              {LOOK[step.state]} {step.name}
            </li>
          ))}
        </ol>
      )}
      {operation.error && (
        <details className="vbm-failed" open>
          <summary>{sentence(operation.error.what)}</summary>
          <ErrorBody why={operation.error.why} fix={operation.error.fix} />
        </details>
      )}
    </>
  );
}
