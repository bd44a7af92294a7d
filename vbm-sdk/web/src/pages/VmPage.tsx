import {
  Alert,
  Button,
  Dropdown,
  DropdownItem,
  DropdownList,
  Divider,
  Flex,
  MenuToggle,
  PageSection,
  Spinner,
  Tab,
  TabTitleText,
  Tabs,
} from "@patternfly/react-core";
import EllipsisIcon from "@patternfly/react-icons/dist/esm/icons/ellipsis-v-icon";
import PowerOffIcon from "@patternfly/react-icons/dist/esm/icons/power-off-icon";
import SearchIcon from "@patternfly/react-icons/dist/esm/icons/search-icon";
import { type ReactNode, useState } from "react";
import type { Vm } from "../api/types";
import { Empty } from "../components/Empty";
import { ErrorBody, sentence } from "../components/ErrorNote";
import { PageHeader } from "../components/PageHeader";
import { PowerLabel } from "../components/StateLabel";
import { stepText } from "../components/Toasts";
import { VERB_LABEL, type Verb, hasConsole, powerText, refusal } from "../lib/power";
import { useLive } from "../live/context";
import { eventsOf, find, runningOn } from "../live/store";
import { Link, go } from "../navigation";
import type { VmTab } from "../routes";
import { EventTable } from "./EventsPage";
import Desktop from "./vm/Desktop";
import { Overview } from "./vm/Overview";
import Serial from "./vm/Serial";
import { Snapshots } from "./vm/Snapshots";
import { useVerb, verbItems } from "./vm/verbs";

const UP = { to: { page: "vms" } as const, text: "Virtual machines" };
const TABS: [VmTab, string][] = [
  ["overview", "Overview"],
  ["desktop", "Desktop"],
  ["serial", "Serial console"],
  ["snapshots", "Snapshots"],
  ["events", "Events"],
];
/** The buttons beside the menu: of these, those that make sense now. */
const BUTTONS: Verb[] = ["start", "resume", "stop"];

export default function VmPage({ name, tab }: { name: string; tab: VmTab }) {
  const live = useLive();
  const vm = find(live.tables.vm, name);
  if (!vm) return <Gone name={name} />;
  const doing = runningOn(live, vm.id);
  const { problem } = vm.status;
  return (
    <>
      <PageHeader
        title={vm.name}
        up={UP}
        badge={
          <Flex columnGap={{ default: "columnGapSm" }} alignItems={{ default: "alignItemsCenter" }}>
            <PowerLabel vm={vm} />
            {doing && (
              <span className="vbm-faint" data-testid="doing">
                <Spinner size="sm" aria-label="under way" /> {doing.verb}: {stepText(doing)}
              </span>
            )}
          </Flex>
        }
        actions={<Actions vm={vm} />}
      >
        {problem && (
          <Alert isInline variant="warning" title={sentence(problem.what)} className="vbm-problem">
            <ErrorBody why={problem.why} fix={problem.fix} />
          </Alert>
        )}
      </PageHeader>
      <PageSection type="tabs">
        <Tabs
          activeKey={tab}
          onSelect={(_, key) => go({ page: "vm", name: vm.name, tab: key as VmTab })}
          aria-label={`About ${vm.name}`}
          usePageInsets
        >
          {TABS.map(([key, text]) => (
            <Tab key={key} eventKey={key} title={<TabTitleText>{text}</TabTitleText>} />
          ))}
        </Tabs>
      </PageSection>
      <PageSection isFilled>
        <Content vm={vm} tab={tab} />
      </PageSection>
    </>
  );
}

function Content({ vm, tab }: { vm: Vm; tab: VmTab }) {
  const live = useLive();
  switch (tab) {
    case "overview":
      return <Overview vm={vm} />;
    case "desktop":
      return (
        <IfItRuns vm={vm}>
          <Desktop vm={vm} />
        </IfItRuns>
      );
    case "serial":
      return (
        <IfItRuns vm={vm}>
          <Serial vm={vm} />
        </IfItRuns>
      );
    case "snapshots":
      return <Snapshots vm={vm} />;
    case "events":
      return <EventTable events={eventsOf(live, vm.id, ...vm.spec.ports)} label={`Events of ${vm.name}`} />;
  }
}

function IfItRuns({ vm, children }: { vm: Vm; children: ReactNode }) {
  const doVerb = useVerb();
  if (hasConsole(vm)) return children;
  const startable = !refusal("start", vm);
  return (
    <Empty
      title={`${vm.name} is ${powerText(vm)}`}
      icon={PowerOffIcon}
      action={startable && <Button onClick={() => doVerb("start", vm)}>{VERB_LABEL.start}</Button>}
    >
      A machine has a console while it runs. This page connects as soon as it does.
    </Empty>
  );
}

function Actions({ vm }: { vm: Vm }) {
  const doVerb = useVerb();
  const [open, setOpen] = useState(false);
  const items = verbItems(vm, doVerb).map((item, at) =>
    item.isSeparator ? (
      <Divider key={at} component="li" />
    ) : (
      <DropdownItem
        key={at}
        description={item.description}
        isAriaDisabled={item.isAriaDisabled ?? false}
        isDanger={item.isDanger ?? false}
        onClick={(event) => item.onClick?.(event as React.MouseEvent, 0, {}, {})}
      >
        {item.title}
      </DropdownItem>
    ),
  );
  return (
    <Flex columnGap={{ default: "columnGapSm" }} flexWrap={{ default: "nowrap" }}>
      {BUTTONS.filter((verb) => !refusal(verb, vm)).map((verb) => (
        <Button key={verb} variant={verb === "stop" ? "secondary" : "primary"} onClick={() => doVerb(verb, vm)}>
          {VERB_LABEL[verb]}
        </Button>
      ))}
      <Dropdown
        isOpen={open}
        onOpenChange={setOpen}
        onSelect={() => setOpen(false)}
        popperProps={{ position: "right" }}
        toggle={(ref) => (
          <MenuToggle
            ref={ref}
            variant="plain"
            aria-label="Actions"
            icon={<EllipsisIcon />}
            onClick={() => setOpen(!open)}
            isExpanded={open}
          />
        )}
      >
        <DropdownList>{items}</DropdownList>
      </Dropdown>
    </Flex>
  );
}

function Gone({ name }: { name: string }) {
  return (
    <>
      <PageHeader title={name} up={UP} />
      <PageSection>
        <Empty
          title={`There is no virtual machine ${name}`}
          icon={SearchIcon}
          action={<Link to={UP.to}>To the virtual machines</Link>}
        >
          It was deleted, or the link is wrong.
        </Empty>
      </PageSection>
    </>
  );
}
