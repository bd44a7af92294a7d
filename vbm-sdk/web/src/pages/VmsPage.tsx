import { Button, Flex, PageSection, Spinner, Tooltip } from "@patternfly/react-core";
import ExclamationTriangleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon";
import ServerIcon from "@patternfly/react-icons/dist/esm/icons/server-icon";
import type { ReactNode } from "react";
import type { Vm } from "../api/types";
import * as cli from "../cli/commands";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { Empty } from "../components/Empty";
import { PageHeader } from "../components/PageHeader";
import { PowerLabel } from "../components/StateLabel";
import { stepText } from "../components/Toasts";
import { Ago } from "../components/time";
import { mib } from "../lib/format";
import { powerText } from "../lib/power";
import { useLive } from "../live/context";
import { imagesOf, nicsOf, runningOn, vmsOf } from "../live/store";
import { Link, go } from "../navigation";
import { LaunchForm } from "./vm/LaunchForm";
import { useVerb, verbItems } from "./vm/verbs";

export function VmsPage() {
  const live = useLive();
  const open = useDialog();
  const doVerb = useVerb();
  const vms = vmsOf(live);
  const create = (
    <Button onClick={() => open((close) => <LaunchForm close={close} />)} data-testid="create-vm">
      Create virtual machine
    </Button>
  );
  const address = (vm: Vm) => nicsOf(live, vm).map((nic) => nic.spec.address);

  const columns: Column<Vm>[] = [
    {
      title: "Name",
      by: (vm) => vm.name,
      cell: (vm) => <Link to={{ page: "vm", name: vm.name, tab: "overview" }}>{vm.name}</Link>,
    },
    { title: "State", by: powerText, cell: (vm) => <State vm={vm} /> },
    {
      title: "Addresses",
      by: (vm) => address(vm)[0] ?? "",
      cell: (vm) => address(vm).join(", ") || <span className="vbm-faint">none</span>,
    },
    {
      title: "Node",
      by: (vm) => vm.spec.node ?? "",
      cell: (vm) => vm.spec.node ?? <span className="vbm-faint">not placed yet</span>,
    },
    {
      title: "Driver",
      by: (vm) => vm.spec.driver,
      cell: (vm) => `${vm.spec.driver}${vm.status.accelerator ? ` (${vm.status.accelerator.name})` : ""}`,
    },
    { title: "CPUs", by: (vm) => vm.spec.vcpus, cell: (vm) => vm.spec.vcpus },
    { title: "Memory", by: (vm) => vm.spec.memory_mib, cell: (vm) => mib(vm.spec.memory_mib) },
    { title: "Image", by: (vm) => vm.image_name, cell: (vm) => vm.image_name },
    { title: "Made", by: (vm) => vm.created_at, cell: (vm) => <Ago at={vm.created_at} /> },
  ];

  return (
    <>
      <PageHeader title="Virtual machines" actions={vms.length > 0 && create} />
      <PageSection isFilled>
        <DataTable
          label="Virtual machines"
          rows={vms}
          columns={columns}
          rowKey={(vm) => vm.name}
          text={(vm) => [vm.name, powerText(vm), ...address(vm), vm.spec.node, vm.image_name].join(" ")}
          actions={(vm) => [
            {
              title: "Desktop",
              description: "its screen, keyboard and mouse",
              onClick: () => go({ page: "vm", name: vm.name, tab: "desktop" }),
            },
            {
              title: "Serial console",
              description: cli.serial(vm.name),
              onClick: () => go({ page: "vm", name: vm.name, tab: "serial" }),
            },
            { isSeparator: true },
            ...verbItems(vm, doVerb),
          ]}
          empty={<NoVms create={create} haveImages={imagesOf(live).length > 0} />}
        />
        {vms.length > 0 && <CliBox command={cli.vms()} />}
      </PageSection>
    </>
  );
}

function State({ vm }: { vm: Vm }) {
  const doing = runningOn(useLive(), vm.id);
  return (
    <Flex columnGap={{ default: "columnGapSm" }} alignItems={{ default: "alignItemsCenter" }}>
      <PowerLabel vm={vm} />
      {doing && (
        <span className="vbm-faint">
          <Spinner size="sm" aria-label="under way" /> {stepText(doing)}
        </span>
      )}
      {vm.status.problem && (
        <Tooltip content={`${vm.status.problem.what}: ${vm.status.problem.why}`}>
          <ExclamationTriangleIcon className="vbm-warning" aria-label="Not as it was asked for" />
        </Tooltip>
      )}
    </Flex>
  );
}

function NoVms({ create, haveImages }: { create: ReactNode; haveImages: boolean }) {
  if (haveImages)
    return (
      <Empty title="No virtual machines yet" icon={ServerIcon} action={create} command="vbm launch IMAGE NAME">
        A virtual machine is made of an image, and runs a few seconds later. Give it a network, and it gets an address.
      </Empty>
    );
  return (
    <Empty
      title="No virtual machines yet"
      icon={ServerIcon}
      action={<Button onClick={() => go({ page: "images" })}>To the images</Button>}
      command="vbm image import NAME --disk FILE"
    >
      A virtual machine is made of an image, and there is none yet: import the disk of an operating system first.
    </Empty>
  );
}
