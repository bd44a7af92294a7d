// Forwards: ports of the host that lead to a VM. A card, on the pages of networks and VMs.

import { Button, Card, CardBody, CardHeader, CardTitle, Grid } from "@patternfly/react-core";
import { useState } from "react";
import { call } from "../api/http";
import type { CreateForward, Forward, Vm } from "../api/types";
import * as cli from "../cli/commands";
import { useAct, useDo } from "../components/act";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { ChoiceField, NumberField, TextField } from "../components/fields";
import { FormModal } from "../components/FormModal";
import { useLive } from "../live/context";
import { nicsOf, vmsOf } from "../live/store";
import { Link } from "../navigation";

const PORT_MAX = 65_535;

/** One port, or the first and the last. */
function ports(first: number, forward: Forward): string {
  const count = forward.spec.count ?? 1;
  return count > 1 ? `${first}-${first + count - 1}` : String(first);
}

/** `vm` is the VM whose page it is, if it is one. */
export function ForwardTable({ forwards, vm }: { forwards: Forward[]; vm?: Vm }) {
  const act = useAct();
  const open = useDialog();
  const columns: Column<Forward>[] = [
    { title: "Host", cell: (forward) => `${forward.spec.listen_address ?? "*"}:${ports(forward.spec.listen_port, forward)}` },
    { title: "Protocol", cell: (forward) => forward.spec.protocol },
    { title: "Leads to", cell: (forward) => `${forward.target_address}:${ports(forward.spec.target_port, forward)}` },
    {
      title: "Machine",
      cell: (forward) => <Link to={{ page: "vm", name: forward.vm_name, tab: "overview" }}>{forward.vm_name}</Link>,
    },
    { title: "Name", cell: (forward) => forward.name },
  ];
  const remove = (forward: Forward) =>
    void act({
      title: `Delete forward ${forward.name}`,
      command: cli.forwardDelete(forward.name),
      run: () => call("delete", "/v1/forwards/{forward}", { path: { forward: forward.id } }),
    });
  return (
    <Card>
      <CardHeader
        actions={{
          actions: (
            <Button
              variant="secondary"
              size="sm"
              onClick={() => open((close) => <ForwardForm close={close} vm={vm?.name} />)}
            >
              Forward a port
            </Button>
          ),
        }}
      >
        <CardTitle component="h2">Forwards</CardTitle>
      </CardHeader>
      <CardBody>
        <DataTable
          label="Forwards"
          rows={forwards}
          columns={columns}
          rowKey={(forward) => forward.id}
          actions={(forward) => [
            {
              title: "Delete",
              description: cli.forwardDelete(forward.name),
              isDanger: true,
              onClick: () => remove(forward),
            },
          ]}
          empty={<p className="vbm-faint">No port of the host leads here. The groups of the machine decide too.</p>}
        />
      </CardBody>
    </Card>
  );
}

function ForwardForm({ vm, close }: { vm: string | undefined; close: () => void }) {
  const live = useLive();
  const act = useDo();
  const candidates = vmsOf(live).filter((other) => nicsOf(live, other).length > 0);
  const [form, setForm] = useState<CreateForward>({
    vm: vm ?? candidates[0]?.name ?? "",
    listen_port: 8080,
    target_port: 80,
    protocol: "tcp",
  });
  const set = (part: Partial<CreateForward>) => setForm((before) => ({ ...before, ...part }));
  const target = candidates.find((other) => other.name === form.vm);
  const networks = target ? [...new Set(nicsOf(live, target).map((nic) => nic.network_name))] : [];
  const body: CreateForward = { ...form, network: networks.length > 1 ? (form.network ?? networks[0]) : null };
  const command = cli.forwardCreate(body);
  return (
    <FormModal
      title="Forward a port of the host"
      submit="Forward"
      command={command}
      ready={form.vm !== ""}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Forward port ${form.listen_port} to ${form.vm}`,
          command,
          run: () => call("post", "/v1/forwards", { body }),
        })
      }
    >
      <Grid hasGutter md={6}>
        <ChoiceField
          label="Machine"
          required
          value={form.vm}
          onChange={(name) => set({ vm: name, network: null })}
          options={
            candidates.length > 0
              ? candidates.map((other) => ({ value: other.name, text: other.name }))
              : [{ value: "", text: "No machine has a port on a network", disabled: true }]
          }
        />
        <ChoiceField
          label="Protocol"
          value={form.protocol ?? "tcp"}
          onChange={(protocol) => set({ protocol: protocol === "udp" ? "udp" : "tcp" })}
          options={[
            { value: "tcp", text: "tcp" },
            { value: "udp", text: "udp" },
          ]}
        />
        <NumberField
          label="Port of the host"
          value={form.listen_port}
          onChange={(listen_port) => set({ listen_port })}
          min={1}
          max={PORT_MAX}
        />
        <NumberField
          label="Port of the machine"
          value={form.target_port}
          onChange={(target_port) => set({ target_port })}
          min={1}
          max={PORT_MAX}
        />
        <TextField
          label="Address of the host"
          value={form.listen_address ?? ""}
          placeholder="each of them"
          onChange={(address) => set({ listen_address: address.trim() || null })}
        />
        {networks.length > 1 && (
          <ChoiceField
            label="Through network"
            value={body.network ?? ""}
            onChange={(network) => set({ network })}
            options={networks.map((network) => ({ value: network, text: network }))}
          />
        )}
      </Grid>
    </FormModal>
  );
}
