// What may be changed of a port while its machine runs: limits, floating IP, allowed addresses.

import { useState } from "react";
import { call } from "../../api/http";
import type { Port, Vm } from "../../api/types";
import * as cli from "../../cli/commands";
import { useDo } from "../../components/act";
import { ChoiceField, TextField } from "../../components/fields";
import { FormModal } from "../../components/FormModal";
import { pairText, parseCount, parsePairs, parseRate, rateText } from "../../lib/limits";
import { useLive } from "../../live/context";
import { floatingIpsOf, portsOf } from "../../live/store";

interface Props {
  vm: Vm;
  nic: Port;
  close: () => void;
}

/** In a few words; empty without limits. */
export function limitsText(nic: Port): string {
  const { in_kbit_per_second: into, out_kbit_per_second: out, connections } = nic.spec.limits ?? {};
  return [
    ...(into ? [`in ${rateText(into)}`] : []),
    ...(out ? [`out ${rateText(out)}`] : []),
    ...(connections ? [`${connections} connections`] : []),
  ].join(", ");
}

const typed = (value: number | null | undefined, text: (value: number) => string) => (value ? text(value) : "");

export function LimitsForm({ vm, nic, close }: Props) {
  const act = useDo();
  const has = nic.spec.limits ?? {};
  const [into, setInto] = useState(typed(has.in_kbit_per_second, rateText));
  const [out, setOut] = useState(typed(has.out_kbit_per_second, rateText));
  const [connections, setConnections] = useState(typed(has.connections, String));
  const limits = {
    in_kbit_per_second: parseRate(into),
    out_kbit_per_second: parseRate(out),
    connections: parseCount(connections),
  };
  const noRate = "write for example 100mbit, 64kbit or 2gbit";
  const problems = {
    into: limits.in_kbit_per_second === undefined ? noRate : undefined,
    out: limits.out_kbit_per_second === undefined ? noRate : undefined,
    connections: limits.connections === undefined ? "write a whole number" : undefined,
  };
  const command = cli.portLimit(vm.name, nic.network_name, limits);
  return (
    <FormModal
      title={`Limits of ${vm.name} on ${nic.network_name}`}
      description="What the port may carry. Takes effect at once, also while it runs."
      submit="Save"
      command={command}
      ready={!problems.into && !problems.out && !problems.connections}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Limit the port of ${vm.name}`,
          command,
          run: () =>
            call("patch", "/v1/vms/{vm}/port", { path: { vm: vm.id }, body: { network: nic.network_name, limits } }),
        })
      }
    >
      <TextField
        label="Reaches the machine in a second"
        value={into}
        onChange={setInto}
        problem={problems.into}
        placeholder="not limited, or 100mbit"
      />
      <TextField
        label="Sent by the machine in a second"
        value={out}
        onChange={setOut}
        problem={problems.out}
        placeholder="not limited, or 20mbit"
      />
      <TextField
        label="Connections at one time"
        value={connections}
        onChange={setConnections}
        problem={problems.connections}
        placeholder="not limited, or 500"
      />
    </FormModal>
  );
}

const OTHER = "";

export function FloatingForm({ vm, nic, close }: Props) {
  const live = useLive();
  const act = useDo();
  const taken = new Set(portsOf(live).map((port) => port.spec.floating_ip));
  const free = floatingIpsOf(live).filter((floating) => !taken.has(floating.spec.address));
  const [chosen, choose] = useState(free[0]?.id ?? OTHER);
  const [address, setAddress] = useState("");
  const kept = free.find((floating) => floating.id === chosen);
  const wanted = kept?.spec.address ?? address.trim();
  const network = vm.spec.ports.length > 1 ? nic.network_name : undefined;
  const command = cli.floatingAttach(kept?.name ?? (wanted || "ADDRESS"), vm.name, network);
  return (
    <FormModal
      title={`Floating IP of ${vm.name} on ${nic.network_name}`}
      description="The world reaches the machine by it and sees it so. Its security groups still decide what may come in."
      submit="Attach"
      command={command}
      ready={wanted !== ""}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Attach floating IP ${wanted} to ${vm.name}`,
          command,
          run: () =>
            call("patch", "/v1/vms/{vm}/port", {
              path: { vm: vm.id },
              body: { network: nic.network_name, floating_ip: wanted },
            }),
        })
      }
    >
      <ChoiceField
        label="Floating IP"
        value={chosen}
        onChange={choose}
        options={[
          ...free.map((floating) => ({ value: floating.id, text: `${floating.name}: ${floating.spec.address}` })),
          { value: OTHER, text: "Another address, which is not kept" },
        ]}
      />
      {!kept && (
        <TextField label="Address" required value={address} onChange={setAddress} placeholder="192.0.2.50" />
      )}
    </FormModal>
  );
}

export function AllowedForm({ vm, nic, close }: Props) {
  const act = useDo();
  const before = (nic.spec.pairs ?? []).map(pairText);
  const [text, setText] = useState(before.join(" "));
  const pairs = parsePairs(text);
  const command = cli.portAllowed(vm.name, nic.network_name, before, pairs.map(pairText));
  return (
    <FormModal
      title={`Allowed addresses of ${vm.name} on ${nic.network_name}`}
      description="What it may use beside its own: a shared service address, or what lies behind a virtual router. No other machine is given any of it."
      submit="Save"
      command={command || "# nothing to change"}
      ready={command !== ""}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Change the allowed addresses of ${vm.name}`,
          command,
          run: () =>
            call("patch", "/v1/vms/{vm}/port", { path: { vm: vm.id }, body: { network: nic.network_name, pairs } }),
        })
      }
    >
      <TextField
        label="Addresses"
        value={text}
        onChange={setText}
        placeholder="10.0.0.200 172.16.0.0/16"
        help="Addresses and subnets, one beside the other; each with =MAC where it goes with another MAC than the port's."
      />
    </FormModal>
  );
}
