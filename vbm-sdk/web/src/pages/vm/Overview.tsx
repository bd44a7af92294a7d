import {
  Button,
  Card,
  CardBody,
  CardHeader,
  CardTitle,
  Grid,
  GridItem,
  Label,
  LabelGroup,
} from "@patternfly/react-core";
import SyncIcon from "@patternfly/react-icons/dist/esm/icons/sync-alt-icon";
import { useEffect, useState } from "react";
import { asApiError, call, fill, send } from "../../api/http";
import type { Port, Vm } from "../../api/types";
import * as cli from "../../cli/commands";
import { useAct, useDo } from "../../components/act";
import { CliBox } from "../../components/CliBox";
import { type Column, DataTable } from "../../components/DataTable";
import { useDialog } from "../../components/Dialogs";
import { Facts } from "../../components/Facts";
import { ManyField } from "../../components/fields";
import { FormModal } from "../../components/FormModal";
import { Ago } from "../../components/time";
import { mib } from "../../lib/format";
import { pairText } from "../../lib/limits";
import { hasConsole, powerText } from "../../lib/power";
import { useLive } from "../../live/context";
import { forwardsOf, groupsOf, nicsOf } from "../../live/store";
import { Link } from "../../navigation";
import { detachDeed } from "../FloatingIpsPage";
import { ForwardTable } from "../forwards";
import { Lease } from "../NetworkPage";
import { AllowedForm, FloatingForm, LimitsForm, limitsText } from "./NicForms";

export function Overview({ vm }: { vm: Vm }) {
  const live = useLive();
  const nics = nicsOf(live, vm);
  const ports = new Set(vm.spec.ports);
  const labels = Object.entries(vm.labels ?? {});
  return (
    <Grid hasGutter>
      <GridItem lg={7}>
        <Card isFullHeight>
          <CardTitle component="h2">Machine</CardTitle>
          <CardBody>
            <Facts
              facts={[
                [
                  "State",
                  <>
                    {powerText(vm)}, since <Ago at={vm.status.since} />
                  </>,
                ],
                ["CPUs", vm.spec.vcpus],
                ["Memory", mib(vm.spec.memory_mib)],
                ["Image", vm.image_name],
                ["Node", vm.spec.node ?? "not placed yet"],
                ["Driver", vm.spec.driver],
                [
                  "Accelerator",
                  vm.status.accelerator && `${vm.status.accelerator.name}: ${vm.status.accelerator.reason}`,
                ],
                ["Process", vm.status.pid],
                ["Made", <Ago at={vm.created_at} />],
                [
                  "Labels",
                  labels.length > 0 && (
                    <LabelGroup numLabels={10}>
                      {labels.map(([key, value]) => (
                        <Label key={key} isCompact variant="outline">
                          {key}={value}
                        </Label>
                      ))}
                    </LabelGroup>
                  ),
                ],
                ["Id", <code>{vm.id}</code>],
              ]}
            />
            <CliBox command={cli.vm(vm.name)} />
          </CardBody>
        </Card>
      </GridItem>
      <GridItem lg={5}>
        <Screen vm={vm} />
      </GridItem>
      <GridItem span={12}>
        <Card>
          <CardTitle component="h2">Network interfaces</CardTitle>
          <CardBody>
            <Nics vm={vm} nics={nics} />
          </CardBody>
        </Card>
      </GridItem>
      <GridItem span={12}>
        <ForwardTable vm={vm} forwards={forwardsOf(live).filter((forward) => ports.has(forward.spec.target))} />
      </GridItem>
    </Grid>
  );
}

function Nics({ vm, nics }: { vm: Vm; nics: Port[] }) {
  const act = useAct();
  const open = useDialog();
  const columns: Column<Port>[] = [
    {
      title: "Network",
      cell: (nic) => <Link to={{ page: "network", name: nic.network_name }}>{nic.network_name}</Link>,
    },
    {
      title: "Address",
      cell: (nic) => (
        <>
          {`${nic.spec.address}${nic.spec.pinned ? " (asked for)" : ""}`}
          {(nic.spec.pairs ?? []).map((pair) => (
            <div key={pairText(pair)} className="vbm-faint">
              may use {pairText(pair)}
            </div>
          ))}
        </>
      ),
    },
    {
      title: "Floating IP",
      cell: (nic) => nic.spec.floating_ip ?? <span className="vbm-faint">none</span>,
    },
    { title: "Limits", cell: (nic) => limitsText(nic) || <span className="vbm-faint">none</span> },
    { title: "Lease", cell: (nic) => <Lease port={nic} /> },
    { title: "MAC", cell: (nic) => <code>{nic.spec.mac}</code> },
    {
      title: "Security groups",
      cell: (nic) => nic.group_names.join(", ") || <span className="vbm-faint">none: nothing gets in</span>,
    },
  ];
  return (
    <DataTable
      label="Network interfaces"
      rows={nics}
      columns={columns}
      rowKey={(nic) => nic.id}
      actions={(nic) => [
        {
          title: "Change security groups",
          description: "also while it runs",
          onClick: () => open((close) => <GroupsForm vm={vm} nic={nic} close={close} />),
        },
        {
          title: "Limit what it carries",
          description: limitsText(nic) || "bandwidth, connections",
          onClick: () => open((close) => <LimitsForm vm={vm} nic={nic} close={close} />),
        },
        nic.spec.floating_ip
          ? {
              title: "Detach the floating IP",
              description: cli.floatingDetach(nic.spec.floating_ip),
              onClick: () => void act(detachDeed(nic, nic.spec.floating_ip ?? "")),
            }
          : {
              title: "Attach a floating IP",
              description: "an address of the world that leads here",
              onClick: () => open((close) => <FloatingForm vm={vm} nic={nic} close={close} />),
            },
        {
          title: "Allowed addresses",
          description: (nic.spec.pairs ?? []).map(pairText).join(", ") || "none beside its own",
          onClick: () => open((close) => <AllowedForm vm={vm} nic={nic} close={close} />),
        },
      ]}
      empty={<p className="vbm-faint">It has no network interface: it was made without a network.</p>}
    />
  );
}

function GroupsForm({ vm, nic, close }: { vm: Vm; nic: Port; close: () => void }) {
  const live = useLive();
  const act = useDo();
  const [groups, setGroups] = useState<string[]>(nic.group_names);
  const command = cli.groupChange(vm.name, nic.network_name, nic.group_names, groups);
  return (
    <FormModal
      title={`Security groups of ${vm.name} on ${nic.network_name}`}
      description="Takes effect at once, also while it runs."
      submit="Save"
      command={command || "# nothing to change"}
      ready={command !== ""}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Change the security groups of ${vm.name}`,
          command,
          run: () =>
            call("put", "/v1/vms/{vm}/groups", { path: { vm: vm.id }, body: { groups, network: nic.network_name } }),
        })
      }
    >
      <ManyField
        label="Security groups"
        values={groups}
        onChange={setGroups}
        options={groupsOf(live).map((group) => group.name)}
        none="None: nothing gets in"
      />
    </FormModal>
  );
}

/** A picture of the screen, as of now. */
function Screen({ vm }: { vm: Vm }) {
  const [picture, setPicture] = useState<string>();
  const [why, setWhy] = useState<string>();
  const [look, setLook] = useState(0);
  const shown = hasConsole(vm);
  const power = vm.status.power?.state;
  useEffect(() => {
    if (!shown) return undefined;
    const stop = new AbortController();
    let url: string | undefined;
    send("get", fill("/v1/vms/{vm}/screenshot", { vm: vm.id }), { signal: stop.signal })
      .then((response) => response.blob())
      .then((blob) => {
        if (stop.signal.aborted) return;
        url = URL.createObjectURL(blob);
        setPicture(url);
        setWhy(undefined);
      })
      .catch((error: unknown) => !stop.signal.aborted && setWhy(asApiError(error).why));
    return () => {
      stop.abort();
      if (url) URL.revokeObjectURL(url);
    };
  }, [vm.id, shown, power, look]);

  return (
    <Card isFullHeight>
      <CardHeader
        actions={{
          actions: shown && (
            <Button
              variant="plain"
              icon={<SyncIcon />}
              aria-label="Look again"
              onClick={() => setLook((before) => before + 1)}
            />
          ),
        }}
      >
        <CardTitle component="h2">Screen</CardTitle>
      </CardHeader>
      <CardBody>
        <Link to={{ page: "vm", name: vm.name, tab: "desktop" }} className="vbm-screen" aria-label="To the desktop">
          {shown && picture && !why ? (
            <img src={picture} alt={`The screen of ${vm.name}`} />
          ) : (
            <span className="vbm-faint">{shown ? (why ?? "looking") : "nothing: it does not run"}</span>
          )}
        </Link>
        <CliBox command={cli.screenshot(vm.name)} />
      </CardBody>
    </Card>
  );
}
