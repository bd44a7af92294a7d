import { Button, Flex, Label, Spinner } from "@patternfly/react-core";
import CameraIcon from "@patternfly/react-icons/dist/esm/icons/camera-icon";
import { useCallback, useEffect, useState } from "react";
import { call, list } from "../../api/http";
import type { Operation, Snapshot, Vm } from "../../api/types";
import * as cli from "../../cli/commands";
import { useDo } from "../../components/act";
import { CliBox } from "../../components/CliBox";
import { type Column, DataTable } from "../../components/DataTable";
import { useDialog } from "../../components/Dialogs";
import { Empty } from "../../components/Empty";
import { ErrorBody, ErrorNote, sentence } from "../../components/ErrorNote";
import { TextField } from "../../components/fields";
import { FormModal } from "../../components/FormModal";
import { ToneLabel } from "../../components/StateLabel";
import { Clock } from "../../components/time";
import { took } from "../../lib/format";
import { nameProblem } from "../../lib/names";
import { type TreeRow, treeRows } from "../../lib/snapshots";
import { useLive } from "../../live/context";

/** Between two looks while one is being taken. */
const LOOK_MS = 1_500;

export function Snapshots({ vm }: { vm: Vm }) {
  const open = useDialog();
  const { snapshots, error } = useSnapshots(vm);
  if (error !== undefined && !snapshots) return <ErrorNote error={error} />;
  if (!snapshots) return <Spinner aria-label="Loading" />;

  const rows = treeRows(snapshots.map((item) => ({ ...item, parent: item.spec.parent ?? null })));
  const create = (
    <Button onClick={() => open((close) => <TakeForm vm={vm} close={close} />)} data-testid="take-snapshot">
      Take a snapshot
    </Button>
  );
  const columns: Column<TreeRow<Snapshot>>[] = [
    {
      title: "Name",
      cell: ({ item, depth }) => (
        <span className="vbm-tree" style={{ paddingInlineStart: `${depth * 1.5}rem` }}>
          {depth > 0 && <span aria-hidden>└ </span>}
          {item.name}{" "}
          {item.status.current && (
            <Label isCompact color="blue">
              the machine stands on this
            </Label>
          )}
        </span>
      ),
    },
    { title: "State", cell: ({ item }) => <State snapshot={item} /> },
    {
      title: "Holds",
      cell: ({ item }) => (item.status.content === "disk-and-memory" ? "disk and memory" : item.status.content),
    },
    { title: "Taken", cell: ({ item }) => item.status.taken_at && <Clock at={item.status.taken_at} /> },
    {
      title: "Halted for",
      cell: ({ item }) => (item.status.paused_micros ? took(item.status.paused_micros / 1000) : ""),
    },
  ];
  return (
    <>
      <DataTable
        label="Snapshots"
        rows={rows}
        columns={columns}
        rowKey={({ item }) => item.name}
        tools={create}
        actions={({ item }) => [
          {
            title: "Revert to it",
            description: cli.snapshotRevert(vm.name, item.name),
            isAriaDisabled: item.status.state !== "ready",
            onClick: () => open((close) => <RevertForm vm={vm} snapshot={item} close={close} />),
          },
          { isSeparator: true },
          {
            title: "Delete",
            description: cli.snapshotDelete(vm.name, item.name),
            isDanger: true,
            onClick: () => open((close) => <DeleteForm vm={vm} snapshot={item} close={close} />),
          },
        ]}
        empty={
          <Empty
            title="No snapshots yet"
            icon={CameraIcon}
            action={create}
            command={cli.snapshotCreate(vm.name, "before-update")}
          >
            A snapshot keeps the machine as it is now, to go back to: its disk, and its memory when it runs.
          </Empty>
        }
      />
      {rows.length > 0 && <CliBox command={cli.snapshots(vm.name)} />}
    </>
  );
}

function State({ snapshot }: { snapshot: Snapshot }) {
  const { state, problem } = snapshot.status;
  const tone = state === "ready" ? "good" : state === "failed" ? "bad" : "busy";
  return (
    <Flex columnGap={{ default: "columnGapSm" }}>
      <ToneLabel
        tone={snapshot.deleting ? "busy" : tone}
        text={snapshot.deleting ? "deleting" : (state ?? "creating")}
      />
      {problem && (
        <details className="vbm-failed">
          <summary>{sentence(problem.what)}</summary>
          <ErrorBody why={problem.why} fix={problem.fix} />
        </details>
      )}
    </Flex>
  );
}

/** What tells that the snapshots of a VM may have changed: their operations, and how far these are. */
function trace(operations: Operation[], vm: Vm): string {
  return operations
    .filter((o) => o.target.kind === "snapshot" && o.target.name.startsWith(`${vm.name}/`))
    .map((o) => `${o.id}:${o.state}`)
    .join();
}

/** The snapshots of a VM: read anew when one of their operations moves, and now and then while one is under way. */
function useSnapshots(vm: Vm): { snapshots?: Snapshot[]; error?: unknown } {
  const live = useLive();
  const [seen, setSeen] = useState<{ snapshots?: Snapshot[]; error?: unknown }>({});
  const [tick, setTick] = useState(0);
  const signs = trace(Object.values(live.tables.operation), vm);
  const read = useCallback(
    async (signal: AbortSignal) => {
      try {
        const { items } = await list("/v1/vms/{vm}/snapshots", signal, { vm: vm.id });
        if (!signal.aborted) setSeen({ snapshots: items });
      } catch (error) {
        if (!signal.aborted) setSeen((before) => ({ ...before, error }));
      }
    },
    [vm.id],
  );
  useEffect(() => {
    const stop = new AbortController();
    void read(stop.signal);
    return () => stop.abort();
  }, [read, signs, tick]);
  const under_way = seen.snapshots?.some((item) => item.deleting || item.status.state === "creating") ?? false;
  useEffect(() => {
    if (!under_way) return undefined;
    const timer = setInterval(() => setTick((before) => before + 1), LOOK_MS);
    return () => clearInterval(timer);
  }, [under_way]);
  return seen;
}

interface FormProps {
  vm: Vm;
  close: () => void;
}

function TakeForm({ vm, close }: FormProps) {
  const act = useDo();
  const [name, setName] = useState("");
  const problem = nameProblem(name);
  const command = cli.snapshotCreate(vm.name, name);
  return (
    <FormModal
      size="small"
      title={`Take a snapshot of ${vm.name}`}
      description="Of its disk when it is off; of its disk and its memory when it runs."
      submit="Take it"
      command={command}
      ready={!problem}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Take a snapshot of ${vm.name}${name && `: ${name}`}`,
          command,
          run: () => call("post", "/v1/vms/{vm}/snapshots", { path: { vm: vm.id }, body: { name: name || null } }),
        })
      }
    >
      <TextField label="Name" value={name} onChange={setName} problem={problem} help="Made up when left empty." />
    </FormModal>
  );
}

function RevertForm({ vm, snapshot, close }: FormProps & { snapshot: Snapshot }) {
  const act = useDo();
  const command = cli.snapshotRevert(vm.name, snapshot.name);
  const after =
    snapshot.status.content === "disk-and-memory" ? "It runs on from that moment." : "It is off afterwards.";
  return (
    <FormModal
      danger
      size="small"
      title={`Revert ${vm.name} to ${snapshot.name}?`}
      description={`What ${vm.name} has written since its last snapshot is lost. ${after}`}
      submit="Revert"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Revert ${vm.name} to ${snapshot.name}`,
          command,
          run: () =>
            call("post", "/v1/vms/{vm}/snapshots/{snapshot}/revert", { path: { vm: vm.id, snapshot: snapshot.id } }),
        })
      }
    />
  );
}

function DeleteForm({ vm, snapshot, close }: FormProps & { snapshot: Snapshot }) {
  const act = useDo();
  const command = cli.snapshotDelete(vm.name, snapshot.name);
  return (
    <FormModal
      danger
      size="small"
      title={`Delete snapshot ${snapshot.name}?`}
      description={`${vm.name} stays as it is, and cannot go back there any more.`}
      submit="Delete"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Delete snapshot ${snapshot.name} of ${vm.name}`,
          command,
          run: () =>
            call("delete", "/v1/vms/{vm}/snapshots/{snapshot}", { path: { vm: vm.id, snapshot: snapshot.id } }),
        })
      }
    />
  );
}
