import { Button, ExpandableSection, Grid, PageSection } from "@patternfly/react-core";
import NetworkIcon from "@patternfly/react-icons/dist/esm/icons/network-wired-icon";
import { useState } from "react";
import { call } from "../api/http";
import type { CreateNetwork, Network, NetworkMode } from "../api/types";
import * as cli from "../cli/commands";
import { useDo } from "../components/act";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { Empty } from "../components/Empty";
import { ChoiceField, NumberField, TextField } from "../components/fields";
import { FormModal } from "../components/FormModal";
import { PageHeader } from "../components/PageHeader";
import { Ago } from "../components/time";
import { nameProblem } from "../lib/names";
import { useLive } from "../live/context";
import { networksOf, portsOf } from "../live/store";
import { Link } from "../navigation";

const MODES: NetworkMode[] = ["nat", "isolated", "routed", "bridged"];
const MTU_MIN_BYTES = 576;
const MTU_MAX_BYTES = 9_000;
const MTU_DEFAULT_BYTES = 1_500;

export function NetworksPage() {
  const live = useLive();
  const open = useDialog();
  const networks = networksOf(live);
  const create = (
    <Button onClick={() => open((close) => <NetworkForm close={close} />)} data-testid="create-network">
      Create network
    </Button>
  );
  const ports = (network: Network) => portsOf(live).filter((port) => port.spec.network === network.id).length;
  const columns: Column<Network>[] = [
    {
      title: "Name",
      by: (network) => network.name,
      cell: (network) => <Link to={{ page: "network", name: network.name }}>{network.name}</Link>,
    },
    { title: "Addresses", by: (network) => network.spec.cidr, cell: (network) => network.spec.cidr },
    { title: "Gateway", cell: (network) => network.spec.gateway },
    { title: "Mode", by: (network) => network.spec.mode ?? "nat", cell: (network) => network.spec.mode ?? "nat" },
    { title: "Ports", by: ports, cell: ports },
    { title: "Made", by: (network) => network.created_at, cell: (network) => <Ago at={network.created_at} /> },
  ];
  const deleteNetwork = useDeleteNetwork();
  return (
    <>
      <PageHeader title="Networks" actions={networks.length > 0 && create} />
      <PageSection isFilled>
        <DataTable
          label="Networks"
          rows={networks}
          columns={columns}
          rowKey={(network) => network.name}
          text={(network) => `${network.name} ${network.spec.cidr} ${network.spec.mode}`}
          actions={(network) => [
            {
              title: "Delete",
              description: cli.networkDelete(network.name),
              isDanger: true,
              onClick: () => deleteNetwork(network),
            },
          ]}
          empty={
            <Empty
              title="No networks yet"
              icon={NetworkIcon}
              action={create}
              command="vbm network create lan 10.0.0.0/24"
            >
              A network gives virtual machines their addresses, lets them reach each other, and the world by NAT.
            </Empty>
          }
        />
        {networks.length > 0 && <CliBox command={cli.networks()} />}
      </PageSection>
    </>
  );
}

export function useDeleteNetwork(): (network: Network) => void {
  const open = useDialog();
  return (network) => open((close) => <DeleteNetwork network={network} close={close} />);
}

function DeleteNetwork({ network, close }: { network: Network; close: () => void }) {
  const act = useDo();
  const command = cli.networkDelete(network.name);
  return (
    <FormModal
      danger
      size="small"
      title={`Delete network ${network.name}?`}
      description="A network can be deleted when no virtual machine has a port on it."
      submit="Delete"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Delete network ${network.name}`,
          command,
          run: () => call("delete", "/v1/networks/{network}", { path: { network: network.id } }),
        })
      }
    />
  );
}

const words = (text: string) => text.split(/[\s,]+/).filter(Boolean);

function NetworkForm({ close }: { close: () => void }) {
  const act = useDo();
  const [name, setName] = useState("");
  const [cidr, setCidr] = useState("10.0.0.0/24");
  const [mode, setMode] = useState<NetworkMode>("nat");
  const [uplink, setUplink] = useState("");
  const [dhcpBy, setDhcpBy] = useState("lan");
  const [gateway, setGateway] = useState("");
  const [first, setFirst] = useState("");
  const [last, setLast] = useState("");
  const [dns, setDns] = useState("");
  const [domain, setDomain] = useState("");
  const [mtu, setMtu] = useState(MTU_DEFAULT_BYTES);
  const problem = nameProblem(name);
  const bridged = mode === "bridged";
  const goesBy = bridged || mode === "routed";
  const half = Boolean(first.trim()) !== Boolean(last.trim());
  const body: CreateNetwork = {
    name,
    cidr: cidr.trim(),
    mode,
    ...(goesBy && uplink.trim() ? { uplink: uplink.trim() } : {}),
    ...(bridged && dhcpBy === "vbm" ? { serve_dhcp: true } : {}),
    gateway: gateway.trim() || null,
    pool_first: first.trim() || null,
    pool_last: last.trim() || null,
    dns: words(dns),
    domain: domain.trim() || null,
    mtu: mtu === MTU_DEFAULT_BYTES ? null : mtu,
    lease_seconds: null,
  };
  const command = cli.networkCreate(body);
  return (
    <FormModal
      title="Create a network"
      submit="Create"
      command={command}
      ready={name !== "" && body.cidr !== "" && !problem && !half && (!bridged || Boolean(body.uplink))}
      onClose={close}
      onSubmit={() =>
        act({ title: `Create network ${name}`, command, run: () => call("post", "/v1/networks", { body }) })
      }
    >
      <Grid hasGutter md={6}>
        <TextField label="Name" required value={name} onChange={setName} problem={problem} placeholder="lan" />
        <TextField
          label="Addresses"
          required
          value={cidr}
          onChange={setCidr}
          help="An IPv4 range, such as 10.0.0.0/24."
        />
      </Grid>
      <ChoiceField
        label="Mode"
        value={mode}
        onChange={(value) => setMode(MODES.find((known) => known === value) ?? "nat")}
        options={[
          { value: "nat", text: "nat: its machines reach the world; the world reaches them by forwards and floating IPs only" },
          { value: "isolated", text: "isolated: its machines reach each other only" },
          { value: "routed", text: "routed: its machines reach the world as they are; the world needs a route to the host" },
          { value: "bridged", text: "bridged: its machines are on the LAN of an interface of the host" },
        ]}
      />
      {goesBy && (
        <TextField
          label="Uplink"
          required={bridged}
          value={uplink}
          onChange={setUplink}
          placeholder={bridged ? "br-lan" : "any"}
          help={
            bridged
              ? "A bridge of the host, or an interface without addresses. The addresses above are those of its LAN."
              : "The only interface that it goes by."
          }
        />
      )}
      {bridged && (
        <ChoiceField
          label="Who tells its machines their addresses"
          value={dhcpBy}
          onChange={setDhcpBy}
          options={[
            { value: "lan", text: "the LAN's own DHCP server" },
            { value: "vbm", text: "VBM, for its own machines only" },
          ]}
        />
      )}
      <ExpandableSection toggleText="More: gateway, pool, DNS, MTU">
        <Grid hasGutter md={6}>
          <TextField label="Gateway" value={gateway} onChange={setGateway} placeholder="the first address" />
          <NumberField label="MTU" unit="bytes" value={mtu} onChange={setMtu} min={MTU_MIN_BYTES} max={MTU_MAX_BYTES} />
          <TextField
            label="First address of the pool"
            value={first}
            onChange={setFirst}
            placeholder="all usable ones"
            problem={half ? "A pool has a first and a last address." : undefined}
          />
          <TextField label="Last address of the pool" value={last} onChange={setLast} />
          <TextField label="DNS servers" value={dns} onChange={setDns} help="Addresses, with spaces between them." />
          <TextField label="Domain" value={domain} onChange={setDomain} placeholder="none" />
        </Grid>
      </ExpandableSection>
    </FormModal>
  );
}
