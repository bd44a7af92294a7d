import { Button, Card, CardBody, CardTitle, Grid, GridItem, PageSection } from "@patternfly/react-core";
import SearchIcon from "@patternfly/react-icons/dist/esm/icons/search-icon";
import type { Port } from "../api/types";
import * as cli from "../cli/commands";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { Empty } from "../components/Empty";
import { Facts } from "../components/Facts";
import { PageHeader } from "../components/PageHeader";
import { Ago } from "../components/time";
import { useLive } from "../live/context";
import { eventsOf, find, forwardsOf, groupsOf, portsOf } from "../live/store";
import { Link } from "../navigation";
import { EventTable } from "./EventsPage";
import { ForwardTable } from "./forwards";
import { GroupRules } from "./GroupsPage";
import { useDeleteNetwork } from "./NetworksPage";

export function NetworkPage({ name }: { name: string }) {
  const live = useLive();
  const deleteNetwork = useDeleteNetwork();
  const network = find(live.tables.network, name);
  const up = { to: { page: "networks" } as const, text: "Networks" };
  if (!network)
    return (
      <>
        <PageHeader title={name} up={up} />
        <PageSection isFilled>
          <Empty
            title={`There is no network ${name}`}
            icon={SearchIcon}
            action={<Link to={up.to}>To the networks</Link>}
          >
            It was deleted, or the link is wrong.
          </Empty>
        </PageSection>
      </>
    );
  const ports = portsOf(live).filter((port) => port.spec.network === network.id);
  const used = new Set(ports.flatMap((port) => port.spec.groups ?? []));
  const groups = groupsOf(live).filter((group) => used.has(group.id));
  const { spec } = network;
  return (
    <>
      <PageHeader
        title={network.name}
        up={up}
        actions={
          <Button variant="secondary" isDanger onClick={() => deleteNetwork(network)}>
            Delete
          </Button>
        }
      />
      <PageSection isFilled>
        <Grid hasGutter>
          <GridItem lg={5}>
            <Card isFullHeight>
              <CardTitle component="h2">Network</CardTitle>
              <CardBody>
                <Facts
                  facts={[
                    ["Addresses", spec.cidr],
                    ["Gateway", spec.gateway],
                    ["Mode", spec.mode ?? "nat"],
                    ["MTU", spec.mtu && `${spec.mtu} bytes`],
                    ["DNS servers", (spec.dns ?? []).join(", ")],
                    ["Domain", spec.domain],
                    ["Made", <Ago at={network.created_at} />],
                    ["Id", <code>{network.id}</code>],
                  ]}
                />
                <CliBox command={cli.network(network.name)} />
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={7}>
            <Card isFullHeight>
              <CardTitle component="h2">Security groups in use</CardTitle>
              <CardBody>
                {groups.length === 0 && (
                  <p className="vbm-faint">No port of this network is in a group: nothing gets in.</p>
                )}
                {groups.map((group) => (
                  <GroupRules key={group.id} group={group} />
                ))}
                <Link to={{ page: "groups" }}>All security groups</Link>
              </CardBody>
            </Card>
          </GridItem>
          <GridItem span={12}>
            <Card>
              <CardTitle component="h2">Ports and leases</CardTitle>
              <CardBody>
                <PortTable ports={ports} />
                <CliBox command={cli.leases(network.name)} />
              </CardBody>
            </Card>
          </GridItem>
          <GridItem span={12}>
            <ForwardTable forwards={forwardsOf(live).filter((forward) => forward.spec.network === network.id)} />
          </GridItem>
          <GridItem span={12}>
            <Card>
              <CardTitle component="h2">Events</CardTitle>
              <CardBody>
                <EventTable events={eventsOf(live, network.id)} label={`Events of ${network.name}`} />
              </CardBody>
            </Card>
          </GridItem>
        </Grid>
      </PageSection>
    </>
  );
}

function PortTable({ ports }: { ports: Port[] }) {
  const columns: Column<Port>[] = [
    { title: "Address", by: (port) => port.spec.address, cell: (port) => port.spec.address },
    {
      title: "Machine",
      by: (port) => port.vm_name,
      cell: (port) => <Link to={{ page: "vm", name: port.vm_name, tab: "overview" }}>{port.vm_name}</Link>,
    },
    { title: "MAC", cell: (port) => <code>{port.spec.mac}</code> },
    { title: "Groups", cell: (port) => port.group_names.join(", ") || <span className="vbm-faint">none</span> },
    { title: "Lease", by: (port) => port.status.leased_at ?? "", cell: (port) => <Lease port={port} /> },
  ];
  return (
    <DataTable
      label="Ports"
      rows={ports}
      columns={columns}
      rowKey={(port) => port.id}
      empty={<p className="vbm-faint">No virtual machine has a port on this network yet.</p>}
    />
  );
}

/** Whether the guest took its address. */
export function Lease({ port }: { port: Port }) {
  const { leased_at: taken, leased_until: until } = port.status;
  if (!taken) return <span className="vbm-faint">not taken yet</span>;
  return (
    <span title={until ? `until ${new Date(until).toLocaleString()}` : undefined}>
      taken <Ago at={taken} />
    </span>
  );
}
