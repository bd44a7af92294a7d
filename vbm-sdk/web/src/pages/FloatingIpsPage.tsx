// Floating IPs: addresses of the world that lead to machines. Kept ones have a name; others are only attached.

import { Button, Label, PageSection } from "@patternfly/react-core";
import GlobeIcon from "@patternfly/react-icons/dist/esm/icons/globe-icon";
import { useEffect, useState } from "react";
import { call } from "../api/http";
import type { FloatingIp, Port } from "../api/types";
import * as cli from "../cli/commands";
import { useAct, useDo } from "../components/act";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { Empty } from "../components/Empty";
import { ChoiceField, TextField } from "../components/fields";
import { FormModal } from "../components/FormModal";
import { PageHeader } from "../components/PageHeader";
import { nameProblem } from "../lib/names";
import { useLive } from "../live/context";
import { type Live, floatingIpsOf, portsOf } from "../live/store";
import { Link } from "../navigation";

/** A floating IP: kept, attached, or both. */
interface Line {
  address: string;
  record?: FloatingIp;
  port?: Port;
}

function linesOf(live: Live): Line[] {
  const ports = portsOf(live).filter((port) => port.spec.floating_ip);
  const kept = floatingIpsOf(live).map((record) => ({
    address: record.spec.address,
    record,
    port: ports.find((port) => port.spec.floating_ip === record.spec.address),
  }));
  const known = new Set(kept.map((line) => line.address));
  const others = ports.map((port) => ({ address: port.spec.floating_ip ?? "", port }));
  return [...kept, ...others.filter((line) => !known.has(line.address))] as Line[];
}

/** How the command line knows it. */
const called = (line: Line) => line.record?.name ?? line.address;

export function FloatingIpsPage() {
  const live = useLive();
  const act = useAct();
  const open = useDialog();
  const lines = linesOf(live);
  const create = <Button onClick={() => open((close) => <CreateForm close={close} />)}>Keep a floating IP</Button>;
  const pool = (
    <Button variant="secondary" onClick={() => open((close) => <PoolForm close={close} />)}>
      Pool
    </Button>
  );
  const columns: Column<Line>[] = [
    {
      title: "Name",
      by: (line) => called(line),
      cell: (line) => line.record?.name ?? <span className="vbm-faint">not kept</span>,
    },
    { title: "Floating IP", by: (line) => line.address, cell: (line) => <code>{line.address}</code> },
    {
      title: "State",
      by: (line) => (line.port ? 1 : 0),
      cell: (line) => (
        <Label isCompact variant="outline" color={line.port ? "green" : "grey"}>
          {line.port ? "attached" : "free"}
        </Label>
      ),
    },
    { title: "Leads to", cell: (line) => line.port?.spec.address ?? "" },
    {
      title: "Machine",
      cell: ({ port }) =>
        port && <Link to={{ page: "vm", name: port.vm_name, tab: "overview" }}>{port.vm_name}</Link>,
    },
    {
      title: "Network",
      cell: ({ port }) => port && <Link to={{ page: "network", name: port.network_name }}>{port.network_name}</Link>,
    },
  ];
  const remove = (record: FloatingIp) =>
    void act({
      title: `Delete floating IP ${record.name}`,
      command: cli.floatingDelete(record.name),
      run: () => call("delete", "/v1/floating-ips/{floating_ip}", { path: { floating_ip: record.id } }),
    });
  return (
    <>
      <PageHeader
        title="Floating IPs"
        about="Addresses of the world that lead to virtual machines, one to one. One that is kept stays when its machine is deleted."
        actions={
          lines.length > 0 && (
            <>
              {pool} {create}
            </>
          )
        }
      />
      <PageSection isFilled>
        <DataTable
          label="Floating IPs"
          rows={lines}
          columns={columns}
          rowKey={called}
          text={(line) => `${called(line)} ${line.address} ${line.port?.vm_name ?? ""}`}
          actions={(line) => [
            line.port
              ? {
                  title: "Detach",
                  description: cli.floatingDetach(called(line)),
                  onClick: () => void act(detachDeed(line.port as Port, called(line))),
                }
              : {
                  title: "Attach to a machine",
                  description: cli.floatingAttach(called(line), "VM"),
                  onClick: () => open((close) => <AttachForm line={line} close={close} />),
                },
            line.record
              ? {
                  title: "Delete",
                  description: line.port ? "detach it first" : cli.floatingDelete(line.record.name),
                  isDanger: true,
                  isAriaDisabled: line.port !== undefined,
                  onClick: () => line.record && remove(line.record),
                }
              : {
                  title: "Keep",
                  description: "also when its machine is deleted",
                  onClick: () => open((close) => <CreateForm close={close} address={line.address} />),
                },
          ]}
          empty={
            <Empty
              title="No floating IPs yet"
              icon={GlobeIcon}
              action={
                <>
                  {create} {pool}
                </>
              }
              command="vbm floating-ip create 192.0.2.50 --name shop"
            >
              Keep an address that leads to your hosts, and let it lead to a machine of a network of mode nat.
            </Empty>
          }
        />
        {lines.length > 0 && <CliBox command={cli.floatingIps()} />}
      </PageSection>
    </>
  );
}

/** Takes a port's floating IP away; one that is kept is free then. */
export function detachDeed(port: Port, name: string) {
  return {
    title: `Detach floating IP ${name}`,
    command: cli.floatingDetach(name),
    run: () =>
      call("patch", "/v1/vms/{vm}/port", {
        path: { vm: port.spec.vm },
        body: { network: port.network_name, floating_ip: "none" },
      }),
  };
}

function CreateForm({ address: given = "", close }: { address?: string; close: () => void }) {
  const act = useDo();
  const [name, setName] = useState("");
  const [address, setAddress] = useState(given);
  const problem = name === "" ? undefined : nameProblem(name);
  const command = cli.floatingCreate(address.trim(), name);
  return (
    <FormModal
      title="Keep a floating IP"
      description="An address that leads to your hosts: of a subnet that they are on, or routed to them."
      submit="Keep"
      command={command}
      ready={!problem}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Keep floating IP ${name || address}`,
          command,
          run: () =>
            call("post", "/v1/floating-ips", { body: { name: name || null, address: address.trim() || null } }),
        })
      }
    >
      <TextField label="Name" value={name} onChange={setName} problem={problem} placeholder="made up" />
      <TextField label="Address" value={address} onChange={setAddress} placeholder="one of the pool" />
    </FormModal>
  );
}

function AttachForm({ line, close }: { line: Line; close: () => void }) {
  const live = useLive();
  const act = useDo();
  const free = portsOf(live).filter((port) => !port.spec.floating_ip);
  const [chosen, choose] = useState(free[0]?.id ?? "");
  const port = free.find((other) => other.id === chosen);
  const several = portsOf(live).filter((other) => other.spec.vm === port?.spec.vm).length > 1;
  const command = cli.floatingAttach(called(line), port?.vm_name ?? "VM", several ? port?.network_name : undefined);
  return (
    <FormModal
      title={`Attach ${called(line)}`}
      description="The security groups of the machine still decide what may come in."
      submit="Attach"
      command={command}
      ready={port !== undefined}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Attach floating IP ${called(line)} to ${port?.vm_name}`,
          command,
          run: () =>
            call("put", "/v1/floating-ips/{floating_ip}/target", {
              path: { floating_ip: line.record?.id ?? line.address },
              body: { vm: port?.spec.vm ?? "", network: port?.network_name ?? null },
            }),
        })
      }
    >
      <ChoiceField
        label="Machine"
        required
        value={chosen}
        onChange={choose}
        options={
          free.length > 0
            ? free.map((other) => ({
                value: other.id,
                text: `${other.vm_name} on ${other.network_name}, ${other.spec.address}`,
              }))
            : [{ value: "", text: "Each port has a floating IP, or there is none", disabled: true }]
        }
      />
    </FormModal>
  );
}

function PoolForm({ close }: { close: () => void }) {
  const act = useDo();
  const [text, setText] = useState("");
  useEffect(() => {
    let here = true;
    call("get", "/v1/floating-pool")
      .then((pool) => here && setText(pool.ranges.join(" ")))
      .catch(() => undefined);
    return () => {
      here = false;
    };
  }, []);
  const ranges = text.split(/[\s,]+/).filter(Boolean);
  const command = cli.floatingPool(ranges);
  return (
    <FormModal
      title="The pool of floating IPs"
      description="From here one is picked where none is named. What is kept stays."
      submit="Save"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: "Change the pool of floating IPs",
          command,
          run: () => call("put", "/v1/floating-pool", { body: { ranges } }),
        })
      }
    >
      <TextField
        label="Ranges"
        value={text}
        onChange={setText}
        placeholder="192.0.2.32-192.0.2.63 198.51.100.7"
        help="Addresses and ranges, one beside the other; empty: each floating IP is named."
      />
    </FormModal>
  );
}
