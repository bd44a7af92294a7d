import { PageSection } from "@patternfly/react-core";
import HistoryIcon from "@patternfly/react-icons/dist/esm/icons/history-icon";
import type { Event } from "../api/types";
import * as cli from "../cli/commands";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { Empty } from "../components/Empty";
import { ObjectLink } from "../components/ObjectLink";
import { PageHeader } from "../components/PageHeader";
import { Clock } from "../components/time";
import { words } from "../lib/format";
import { useLive } from "../live/context";
import { EVENTS_KEPT } from "../live/store";

export function EventsPage() {
  const { events } = useLive();
  return (
    <>
      <PageHeader
        title="Events"
        about={`What happened, the newest first; the last ${EVENTS_KEPT} are shown. The command shows all that are kept.`}
      />
      <PageSection isFilled>
        <EventTable events={events} label="Events" withObject />
        <CliBox command={cli.events()} />
      </PageSection>
    </>
  );
}

export function EventTable({
  events,
  label,
  withObject = false,
}: {
  events: Event[];
  label: string;
  withObject?: boolean;
}) {
  const object: Column<Event> = {
    title: "Object",
    by: (event) => event.object.name,
    cell: (event) => <ObjectLink object={event.object} />,
  };
  const columns: Column<Event>[] = [
    { title: "When", by: (event) => event.revision, cell: (event) => <Clock at={event.at} /> },
    { title: "What", by: (event) => event.kind, cell: (event) => words(event.kind) },
    ...(withObject ? [object] : []),
    { title: "More", cell: (event) => event.message },
  ];
  return (
    <DataTable
      label={label}
      rows={events}
      columns={columns}
      rowKey={(event) => event.id}
      text={(event) => `${words(event.kind)} ${event.object.kind} ${event.object.name} ${event.message}`}
      empty={
        <Empty title="No events yet" icon={HistoryIcon}>
          Whatever happens to machines, networks and nodes is written down here.
        </Empty>
      }
    />
  );
}
